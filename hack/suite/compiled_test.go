package main

import (
	"errors"
	"os"
	"slices"
	"testing"
)

func TestShare(t *testing.T) {
	all := []stage{{name: "cri"}, {name: "image"}, {name: "test/e2e"}, {name: "test/e2e/systemd"}, {name: "test/systemd"}}
	var got []string
	for _, part := range []string{"1/2", "2/2"} {
		some, err := share(slices.Clone(all), part)
		if err != nil {
			t.Fatal(err)
		}

		heavy := 0
		for _, s := range some {
			got = append(got, s.name)
			if minutes(s.name) > 1 {
				heavy++
			}
		}

		if heavy == 0 || heavy == 3 {
			t.Errorf("part %s has %d of three heavy stages", part, heavy)
		}
	}

	slices.Sort(got)
	want := make([]string, 0, len(all))
	for _, s := range all {
		want = append(want, s.name)
	}

	if !slices.Equal(got, want) {
		t.Errorf("both parts: got %q, want %q", got, want)
	}
	for _, bad := range []string{"1", "0/2", "3/2", "a/b"} {
		if _, err := share(all, bad); err == nil {
			t.Errorf("part %q was accepted", bad)
		}
	}
}

// The SELinux test runs only with SELinux.
func TestStagesOfBothMachines(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := errors.Join(os.MkdirAll("test/systemd", 0o755), os.WriteFile("test/systemd/"+compiledTest, nil, 0o755)); err != nil {
		t.Fatal(err)
	}

	for _, machine := range []struct {
		stages func(selection) ([]stage, error)
		names  []string
		choice string
	}{
		{allStages, []string{"test/systemd", "critest/cgroupfs", "critest/systemd"}, "-test.skip=^TestSELinux$|" + longTests},
		{selinuxStages, []string{"critest/selinux", "test/selinux"}, "-test.run=^TestSELinux$"},
	} {
		stages, err := machine.stages(selection{})
		if err != nil {
			t.Fatal(err)
		}

		var names []string
		for _, s := range stages {
			names = append(names, s.name)
		}
		if !slices.Equal(names, machine.names) {
			t.Fatalf("got stages %q, want %q", names, machine.names)
		}

		i := slices.IndexFunc(stages, func(s stage) bool { return s.dir == "test/systemd" })
		if s := stages[max(i, 0)]; !slices.Contains(s.args, machine.choice) {
			t.Errorf("%s in %s runs %q, want %q in there", s.name, s.dir, s.args, machine.choice)
		}
	}
}

// TestCrashesOnRequest requires the tests of crashes to run if they are selected
// by name, all of their cases as long tests, and not otherwise.
func TestCrashesOnRequest(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := errors.Join(os.MkdirAll(crashes, 0o755), os.WriteFile(crashes+"/"+compiledTest, nil, 0o755)); err != nil {
		t.Fatal(err)
	}

	for _, test := range []struct {
		sel       selection
		runs, all bool
	}{
		{selection{}, false, false},
		{selection{only: "crash"}, true, false},
		{selection{long: true}, true, true},
		{selection{only: "^test/crash$", long: true}, true, true},
	} {
		stages, err := allStages(test.sel)
		if err != nil {
			t.Fatal(err)
		}

		i := slices.IndexFunc(stages, func(s stage) bool { return s.name == crashes })
		if (i >= 0) != test.runs {
			t.Errorf("%+v: it runs %t, want %t", test.sel, i >= 0, test.runs)
			continue
		}
		if i >= 0 && slices.Contains(stages[i].args, someCases) == test.all {
			t.Errorf("%+v: it runs %q, all cases %t", test.sel, stages[i].args, test.all)
		}
	}
}

// TestRunning requires a pattern to replace the choice of a suite, and to be
// handed to tests of Go only.
func TestRunning(t *testing.T) {
	stages := []stage{
		{name: "test/node", args: []string{"./" + compiledTest, "-test.run=^TestNode$"}},
		{name: "critest/systemd", counts: byTally, args: []string{"conformance"}},
	}
	got := running(stages, "^TestX$")
	if args := got[0].args; args[len(args)-1] != "-test.run=^TestX$" {
		t.Errorf("%s runs %q", got[0].name, args)
	}
	if args := got[1].args; len(args) != 1 {
		t.Errorf("%s runs %q", got[1].name, args)
	}
	if args := running(stages, "")[0].args; !slices.Equal(args, stages[0].args) {
		t.Errorf("without a pattern it runs %q", args)
	}
}
