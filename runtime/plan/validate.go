package plan

import (
	"fmt"
	"strings"
)

// Validate checks the plan's form: indices and registers exist, strings hold no
// NUL, and its bounds are kept. It does not judge what the calls do.
func (p *Plan) Validate() error {
	if len(p.Inputs) > maxInputs || len(p.Steps) > maxSteps {
		return fmt.Errorf("plan %q: %w: %d inputs, %d steps", p.Name, ErrTooLarge, len(p.Inputs), len(p.Steps))
	}
	if len(p.Steps) == 0 {
		return fmt.Errorf("plan %q: %w: no steps", p.Name, ErrInvalid)
	}
	if p.Clone.Cgroup < -1 || p.Clone.Cgroup >= len(p.Inputs) {
		return fmt.Errorf("plan %q: %w: cgroup input %d", p.Name, ErrInvalid, p.Clone.Cgroup)
	}

	for i, in := range p.Inputs {
		if in.Kind > InputProc {
			return fmt.Errorf("plan %q: input %d %q: %w: kind %d", p.Name, i, in.Name, ErrInvalid, in.Kind)
		}
	}

	forks := 0
	for i := range p.Steps {
		s := &p.Steps[i]
		if s.Fork {
			forks++
		}
		if err := p.checkStep(s); err != nil {
			return fmt.Errorf("plan %q: step %d %q: %w", p.Name, i, s.Name, err)
		}
	}

	if forks > 1 {
		return fmt.Errorf("plan %q: %w: %d forks", p.Name, ErrInvalid, forks)
	}

	return p.checkExposed()
}

// checkExposed refuses a plan whose process talks to the keeper while others,
// which could impersonate it, see it.
func (p *Plan) checkExposed() error {
	exposed := false
	for i := range p.Steps {
		s := &p.Steps[i]
		if s.Exposed && !s.Fork {
			return fmt.Errorf("plan %q: step %d %q: %w: exposed without a fork", p.Name, i, s.Name, ErrInvalid)
		}

		for _, a := range s.Args {
			if exposed && (a.Kind == ArgSync || a.Kind == ArgPassFD || a.Kind == ArgBack) {
				return fmt.Errorf("plan %q: step %d %q: %w: talks to the keeper after an exposed fork", p.Name, i, s.Name, ErrInvalid)
			}
		}
		exposed = exposed || s.Exposed
	}

	return nil
}

func (p *Plan) checkStep(s *Step) error {
	if s.Save < NoReg || s.Save >= NumRegs {
		return fmt.Errorf("%w: register %d", ErrInvalid, s.Save)
	}
	if s.Cond > IfUnset {
		return fmt.Errorf("%w: condition %d", ErrInvalid, s.Cond)
	}
	if s.Cond != Always && (s.CondReg < 0 || s.CondReg >= NumRegs) {
		return fmt.Errorf("%w: condition on register %d", ErrInvalid, s.CondReg)
	}
	if len(s.Args) > maxArgs || len(s.Ignore) > maxIgnore {
		return fmt.Errorf("%w: %d arguments, %d ignored errors", ErrInvalid, len(s.Args), len(s.Ignore))
	}

	buf := int64(0)
	for _, a := range s.Args {
		if a.Kind == ArgBuf {
			buf = a.Int
		}
	}
	if most := max(len(s.Want), len(s.Avoid)); int64(most) > buf {
		return fmt.Errorf("%w: %d bytes compared in %d", ErrInvalid, most, buf)
	}

	for i := range s.Args {
		if err := p.checkArg(&s.Args[i]); err != nil {
			return fmt.Errorf("argument %d: %w", i, err)
		}
	}

	return nil
}

func (p *Plan) checkArg(a *Arg) error {
	switch a.Kind {
	case ArgInt, ArgBytes, ArgNoFile:
	case ArgSync:
		if a.Int != 0 && a.Int != AskDaemon {
			return fmt.Errorf("%w: gate of kind %d", ErrInvalid, a.Int)
		}
	case ArgBack:
		if a.Int < -1 || a.Int > 1 {
			return fmt.Errorf("%w: %d descriptors from the socket", ErrInvalid, a.Int)
		}
	case ArgStr:
		return checkString(a.Str)
	case ArgStrs:
		for _, s := range a.Strs {
			if err := checkString(s); err != nil {
				return err
			}
		}
	case ArgIn:
		if a.Int < 0 || a.Int >= int64(len(p.Inputs)) {
			return fmt.Errorf("%w: input %d", ErrInvalid, a.Int)
		}
	case ArgReg, ArgPassFD, ArgRegPtr:
		if a.Int < 0 || a.Int >= NumRegs {
			return fmt.Errorf("%w: register %d", ErrInvalid, a.Int)
		}
	case ArgBuf:
		if a.Int < 1 || a.Int > maxBuf {
			return fmt.Errorf("%w: %d bytes of memory", ErrInvalid, a.Int)
		}
	case ArgFilter:
		if len(a.Bytes) == 0 || len(a.Bytes)%8 != 0 || len(a.Bytes) > maxFilter {
			return fmt.Errorf("%w: filter of %d bytes", ErrInvalid, len(a.Bytes))
		}
	default:
		return fmt.Errorf("%w: kind %d", ErrInvalid, a.Kind)
	}
	return nil
}

func checkString(s string) error {
	if strings.IndexByte(s, 0) >= 0 {
		return fmt.Errorf("%w: NUL in string", ErrInvalid)
	}
	return nil
}
