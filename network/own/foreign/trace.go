package foreign

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"crisp/network/netns"
)

// maxDepth bounds jumps, as the kernel does.
const maxDepth = 16

// Drop is a rule, or a chain's policy, that drops a packet.
type Drop struct {
	Packet string
	// Table is "ip filter".
	Table, Chain string
	// Rule is the rule's number in its chain and Handle its handle; 0 is the policy.
	Rule   int
	Handle uint64
	// Text is what the rule says, as far as it is known here.
	Text string
	// Certain is false if it depends on something that is not known.
	Certain bool
}

// String says which rule drops which packets.
func (d *Drop) String() string {
	what := fmt.Sprintf("table %s, chain %s: its policy", d.Table, d.Chain)
	if d.Rule != 0 {
		what = fmt.Sprintf("table %s, chain %s: rule %d (handle %d), %s,", d.Table, d.Chain, d.Rule, d.Handle, d.Text)
	}
	verb := "drops"
	if !d.Certain {
		verb = "may drop"
	}
	return fmt.Sprintf("%s %s packets %s", what, verb, d.Packet)
}

// Ruleset is the packet filter of a network namespace, without some tables. Chains and
// sets are read when a packet gets there.
type Ruleset struct {
	conn   *nftables.Conn
	chains map[string]*chain
	// Unread lists what could not be read.
	Unread []string
	sets   map[string]*contents
}

// chain is a chain with its rules, once they are read.
type chain struct {
	*nftables.Chain
	table string
	read  bool
	rules []*nftables.Rule
}

// contents are a set's elements.
type contents struct {
	set      *nftables.Set
	elements []nftables.SetElement
}

// Read returns the packet filter of a namespace, with the tables that are wanted, such as
// "ip filter". [Ruleset.Close] has to be called.
func Read(ns *os.File, want func(table string) bool) (*Ruleset, error) {
	r := &Ruleset{chains: map[string]*chain{}, sets: map[string]*contents{}}
	err := netns.Do(ns, func() error {
		var err error
		r.conn, err = nftables.New(nftables.AsLasting())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open packet filter: %w", err)
	}
	list, err := r.conn.ListChains()
	if err != nil {
		r.Close()
		return nil, fmt.Errorf("list chains: %w", err)
	}

	for _, c := range list {
		family, ok := familyNames[c.Table.Family]
		if made := (&chain{Chain: c, table: family + " " + c.Table.Name}); ok && want(made.table) {
			r.chains[made.key()] = made
		}
	}
	return r, nil
}

// rulesOf returns the rules of a chain.
func (r *Ruleset) rulesOf(c *chain) []*nftables.Rule {
	if c.read {
		return c.rules
	}
	c.read = true
	var err error
	// Another program may have removed it since.
	if c.rules, err = r.conn.GetRules(c.Table, c.Chain); err != nil {
		r.Unread = append(r.Unread, fmt.Sprintf("chain %s of table %s: %v", c.Name, c.table, err))
	}
	return c.rules
}

// familyNames are the families whose tables see packets that are routed.
var familyNames = map[nftables.TableFamily]string{
	nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet",
}

// Close closes the connection to the kernel.
func (r *Ruleset) Close() { _ = r.conn.CloseLasting() }

func (c *chain) key() string { return c.table + " " + c.Name }

// sees reports whether a base chain sees a packet at a hook.
func (c *chain) sees(p *Packet, hook nftables.ChainHook) bool {
	if c.Hooknum == nil || *c.Hooknum != hook || c.Type != nftables.ChainTypeFilter {
		return false
	}
	return c.Table.Family == nftables.TableFamilyINet || byte(c.Table.Family) == p.family()
}

// Trace returns the rule that drops a packet, or that may: the first certain one, or
// else the first of the others. It is nil if none does.
func (r *Ruleset) Trace(p Packet) *Drop {
	var maybe *Drop
	for _, hook := range p.Hooks {
		var base []*chain
		for _, c := range r.chains {
			if c.sees(&p, hook) {
				base = append(base, c)
			}
		}
		slices.SortFunc(base, func(a, b *chain) int {
			if d := int(*a.Priority) - int(*b.Priority); d != 0 {
				return d
			}
			return strings.Compare(a.key(), b.key())
		})

		for _, c := range base {
			w := &walk{rules: r, packet: &p, hook: hook, certain: true}
			w.start(c)
			if w.drop != nil && w.drop.Certain {
				return w.drop
			}
			if maybe == nil {
				maybe = w.drop
			}
		}
	}
	return maybe
}

// walk is a packet's way through a base chain.
type walk struct {
	rules  *Ruleset
	packet *Packet
	hook   nftables.ChainHook
	// certain is false after a rule that may have matched.
	certain bool
	// forked counts the rules that may have ended it.
	forked int
	drop   *Drop // the first
}

// outcome of a rule or chain.
type outcome int

const (
	goesOn  outcome = iota // with the next rule
	returns                // to the chain that jumped
	ends                   // with a verdict
)

// start walks a base chain, whose policy applies at the end.
func (w *walk) start(c *chain) {
	if w.chain(c, 0) == ends {
		return
	}
	if c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop {
		w.dropped(Drop{Table: c.table, Chain: c.Name, Text: "policy drop"})
	}
}

// dropped notes a drop.
func (w *walk) dropped(d Drop) {
	if w.drop == nil {
		d.Packet, d.Certain = w.packet.What, w.certain
		w.drop = &d
	}
}

func (w *walk) chain(c *chain, depth int) outcome {
	if depth > maxDepth {
		return goesOn
	}
	for i, rule := range w.rules.rulesOf(c) {
		switch o := w.rule(c, i, rule, depth); o {
		case goesOn:
		case returns:
			return goesOn
		default:
			return o
		}
	}
	return goesOn
}

// rule evaluates a rule.
func (w *walk) rule(c *chain, index int, rule *nftables.Rule, depth int) outcome {
	m := machine{walk: w, chain: c}
	matched := yes
	for _, e := range rule.Exprs {
		v, verdict := m.eval(e)
		matched = min(matched, v)
		if matched == no {
			return goesOn
		}
		if verdict == nil {
			continue
		}

		before, forked := w.certain, w.forked
		w.certain = w.certain && matched == yes
		drop := Drop{Table: c.table, Chain: c.Name, Rule: index + 1, Handle: rule.Handle, Text: render(rule)}
		o := w.decide(verdict, drop, c, depth)
		if matched == yes {
			return o
		}
		// The rule may match or not, so what follows is not certain if the verdict
		// would have ended the way.
		if o != goesOn {
			w.forked++
		}
		w.certain = before && w.forked == forked
		return goesOn
	}
	return goesOn
}

// decide applies a verdict.
func (w *walk) decide(v *expr.Verdict, drop Drop, c *chain, depth int) outcome {
	switch v.Kind {
	case expr.VerdictDrop:
		w.dropped(drop)
		return ends

	case expr.VerdictJump, expr.VerdictGoto:
		target := w.rules.chains[c.table+" "+v.Chain]
		if target == nil {
			return goesOn
		}
		o := w.chain(target, depth+1)
		if o == goesOn && v.Kind == expr.VerdictGoto {
			return returns
		}
		return o

	case expr.VerdictReturn:
		return returns
	case expr.VerdictContinue:
		return goesOn
	default: // accept; or another program decides
		return ends
	}
}
