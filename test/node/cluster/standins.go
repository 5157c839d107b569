package cluster

import (
	"embed"
	"io/fs"
	"os"
	"path/filepath"
)

//go:embed standins
var standins embed.FS

// StandIns are programs that replace systemd if it does not run: systemctl,
// systemd-run and sudo, for a suite or kubeadm that finds them first in PATH.
type StandIns struct {
	// Bin has the programs, and Units a file for each unit: NAME.service.command
	// is a shell script that sets "$@" to the program to run.
	Bin, Units string
}

// NewStandIns writes the programs to dir.
func NewStandIns(dir string) (StandIns, error) {
	s := StandIns{filepath.Join(dir, "bin"), filepath.Join(dir, "units")}
	for _, dir := range []string{s.Bin, s.Units} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return s, err
		}
	}

	return s, fs.WalkDir(standins, "standins", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := standins.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(s.Bin, d.Name()), text, 0o755)
	})
}

// Env is the environment of a process that uses the programs, with those of
// bin. What they start has private sysctls ([OwnSysctls]).
func (s StandIns) Env(bin string) []string {
	return append(os.Environ(), "PATH="+s.Bin+":"+bin+":"+os.Getenv("PATH"), "CRISP_UNITS="+s.Units, "CRISP_WRAP="+OwnSysctls)
}
