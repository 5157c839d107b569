//go:build crash

package crash

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/test/testkit"
)

// operation is a call that changes the machine in several steps.
type operation struct {
	name string
	// prepare sets up what the call needs.
	prepare []func(*scene)
	call    func(*scene) error
	// heal makes a retry possible, as kubelet does, based on what is listed.
	heal func(*scene)
	// skip reports whether the call has succeeded after all, and a retry would be
	// an error.
	skip func(*scene) bool
	// done checks what must hold once the call has succeeded.
	done func(*scene)
}

// The names of operations that need CRIU.
const (
	checkpointName = "CheckpointContainer"
	restorePodName = "RestorePod"
	restoreName    = "StartContainer of a checkpoint"
	snapshotName   = "crisp snapshot"
	cloneName      = "crisp clone"
)

var operations = []operation{{
	name: "RunPodSandbox", call: (*scene).tryRun, heal: (*scene).removeUnready,
	done: func(s *scene) {
		s.wantPod(runtimeapi.PodSandboxState_SANDBOX_READY)
		s.create()
		s.start()
		s.wantAlive()
	},
}, {
	name: "CreateContainer", prepare: []func(*scene){(*scene).run}, call: (*scene).tryCreate, heal: (*scene).removeUnknown,
	done: func(s *scene) {
		s.wantContainer(runtimeapi.ContainerState_CONTAINER_CREATED)
		s.start()
		s.wantAlive()
	},
}, {
	name: "StartContainer", prepare: []func(*scene){(*scene).run, (*scene).create}, call: (*scene).tryStart,
	heal: (*scene).recreate, skip: (*scene).runs, done: (*scene).wantAlive,
}, {
	name: "StopContainer", prepare: []func(*scene){(*scene).run, (*scene).create, (*scene).start}, call: (*scene).tryStop,
	done: func(s *scene) {
		if st := s.wantContainer(runtimeapi.ContainerState_CONTAINER_EXITED); st.ExitCode != 137 {
			s.t.Errorf("the container exited with %d (%s), want 137", st.ExitCode, st.Reason)
		}
	},
}, {
	name: "RemoveContainer", prepare: []func(*scene){(*scene).run, (*scene).create, (*scene).start}, call: (*scene).tryRemove,
	done: func(s *scene) {
		s.wantPod(runtimeapi.PodSandboxState_SANDBOX_READY)
		if left := s.containers(); len(left) > 0 {
			s.t.Errorf("still listed: %v", left)
		}
		s.create() // the name is free
		s.start()
		s.wantAlive()
	},
}, {
	name: "StartContainer with hooks", prepare: []func(*scene){(*scene).run, (*scene).addHooks, (*scene).create}, call: (*scene).tryStart,
	heal: (*scene).recreate, skip: (*scene).runs, done: (*scene).wantAlive,
}, {
	name: "RemoveContainer with hooks", prepare: []func(*scene){(*scene).run, (*scene).addHooks, (*scene).create, (*scene).start}, call: (*scene).tryRemove,
	done: func(s *scene) {
		if left := s.containers(); len(left) > 0 {
			s.t.Errorf("still listed: %v", left)
		}
	},
}, {
	name: "StopPodSandbox", prepare: []func(*scene){(*scene).run, (*scene).create, (*scene).start}, call: (*scene).tryStopPod,
	done: func(s *scene) {
		s.wantPod(runtimeapi.PodSandboxState_SANDBOX_NOTREADY)
		s.wantContainer(runtimeapi.ContainerState_CONTAINER_EXITED)
	},
}, {
	name: "RemovePodSandbox", prepare: []func(*scene){(*scene).run, (*scene).create, (*scene).start}, call: (*scene).tryRemovePod,
	done: func(s *scene) {
		if left := len(s.pods()) + len(s.containers()); left > 0 {
			s.t.Errorf("%d pods and containers are still listed", left)
		}
	},
}, {
	name: "UpdateContainerResources", prepare: []func(*scene){(*scene).run, (*scene).create, (*scene).start}, call: (*scene).tryUpdate,
	done: func(s *scene) {
		st := s.wantContainer(runtimeapi.ContainerState_CONTAINER_RUNNING)
		if got := st.GetResources().GetLinux().GetMemoryLimitInBytes(); got != updatedMemory {
			s.t.Errorf("the memory limit is %d, want %d", got, updatedMemory)
		}
		if got := s.seenLimit(); got != updatedMemory {
			s.t.Errorf("the memory limit in the cgroup is %d, want %d", got, updatedMemory)
		}
		s.wantAlive()
	},
}, {
	name: "UpdatePodSandboxResources", prepare: []func(*scene){(*scene).run, (*scene).create, (*scene).start}, call: (*scene).tryUpdatePod,
	done: (*scene).wantAlive,
}, {
	name: checkpointName, prepare: []func(*scene){(*scene).ownPIDs, (*scene).run, (*scene).create, (*scene).start}, call: (*scene).tryCheckpoint,
	done: func(s *scene) {
		s.wantAlive()
		if left, err := os.ReadDir(filepath.Join(s.n.Dir, "root", "checkpoints")); err != nil || len(left) > 0 {
			s.t.Errorf("left of checkpoints: %v, %v", left, err)
		}
	},
}, {
	name: restorePodName, prepare: []func(*scene){(*scene).ownPIDs, (*scene).run, (*scene).create, (*scene).start, (*scene).save},
	call: (*scene).tryRestore, heal: (*scene).removeUnready,
	done: func(s *scene) {
		s.wantPod(runtimeapi.PodSandboxState_SANDBOX_READY)
		s.wantContainer(runtimeapi.ContainerState_CONTAINER_CREATED)
		s.start()
		s.wantAlive()
	},
}, {
	name: restoreName, prepare: []func(*scene){(*scene).ownPIDs, (*scene).run, (*scene).create, (*scene).start, (*scene).save, (*scene).restore},
	call: (*scene).tryStart, heal: (*scene).recreate, skip: (*scene).runs, done: (*scene).wantAlive,
}, {
	name: snapshotName, prepare: []func(*scene){(*scene).ownPIDs, (*scene).run, (*scene).create, (*scene).start}, call: (*scene).trySnapshot,
	done: func(s *scene) {
		s.wantAlive()
		s.wantSnapshot()
	},
}, {
	name: cloneName, prepare: []func(*scene){(*scene).ownPIDs, (*scene).run, (*scene).create, (*scene).start, (*scene).snapshot},
	call: (*scene).tryClone, heal: (*scene).awaitRemoval, skip: (*scene).runs, done: (*scene).wantClone,
}, {
	name: "crisp commit", prepare: []func(*scene){(*scene).run, (*scene).create, (*scene).start}, call: (*scene).tryCommit,
	done: func(s *scene) {
		s.wantAlive()
		s.wantCommitted()
	},
}, {
	name: "ExecSync", prepare: []func(*scene){(*scene).run, (*scene).create, (*scene).start}, call: (*scene).tryExec,
	done: (*scene).wantAlive,
}}

// needs skips an operation that this machine cannot perform.
func (n *node) needs(t *testing.T, op operation) {
	t.Helper()
	if slices.Contains([]string{checkpointName, restorePodName, restoreName, snapshotName, cloneName}, op.name) && !n.hasCRIU {
		testkit.Skip(t, "criu", "it could not be fetched")
	}
}

// removeUnready removes pods that are not ready.
func (s *scene) removeUnready() {
	for _, p := range s.pods() {
		if p.State != runtimeapi.PodSandboxState_SANDBOX_READY {
			call(s.t, s.n.Runtime.StopPodSandbox, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.Id})
			call(s.t, s.n.Runtime.RemovePodSandbox, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.Id})
		}
	}
}

// removeUnknown removes containers in state unknown.
func (s *scene) removeUnknown() {
	for _, c := range s.containers() {
		if c.State == runtimeapi.ContainerState_CONTAINER_UNKNOWN {
			call(s.t, s.n.Runtime.RemoveContainer, &runtimeapi.RemoveContainerRequest{ContainerId: c.Id})
		}
	}
}

// recreate replaces a container that has exited.
func (s *scene) recreate() {
	for _, c := range s.containers() {
		if c.State == runtimeapi.ContainerState_CONTAINER_EXITED {
			s.must("remove container", s.tryRemove())
			s.create()
		}
	}
}

func (s *scene) runs() bool {
	list := s.containers()
	return len(list) == 1 && list[0].State == runtimeapi.ContainerState_CONTAINER_RUNNING
}
