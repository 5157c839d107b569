package image

// withFailpoints runs do, whose effect is named. Before and after it are
// failpoints, at which tests kill the process or inject an error.
func (s *Service) withFailpoints(effect string, do func() error) error {
	if s.opts.failpoint == nil {
		return do()
	}

	if err := s.opts.failpoint("before " + effect); err != nil {
		return err
	}
	if err := do(); err != nil {
		return err
	}
	return s.opts.failpoint("after " + effect)
}
