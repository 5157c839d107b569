package image

// step runs do, which has the effect named. Before and after it are points at
// which tests end the process or make it err.
func (s *Service) step(effect string, do func() error) error {
	if s.opts.point == nil {
		return do()
	}
	if err := s.opts.point("before " + effect); err != nil {
		return err
	}
	if err := do(); err != nil {
		return err
	}
	return s.opts.point("after " + effect)
}
