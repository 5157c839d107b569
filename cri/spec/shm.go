package spec

import (
	"strconv"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// ShmSizeAnnotation of a pod is the size of its /dev/shm: a number of bytes,
	// or of Ki, Mi, Gi or Ti.
	ShmSizeAnnotation = "crisp.runtime/shm-size"
	// crioShmSize is the same for CRI-O. There units are of 1024 whether or not
	// they have an i, and in any case: "64m", "1.5GiB".
	crioShmSize = "io.kubernetes.cri-o.ShmSize"
	// minShmSize is one page: none would be no limit at all. What a /dev/shm
	// holds counts as the pod's memory, so that the upper bound is no more than
	// what no machine has.
	minShmSize, maxShmSize = 4096, 1 << 44
)

// shmSize is the size in bytes of a pod's /dev/shm, 0 for the usual.
func shmSize(cfg *runtimeapi.PodSandboxConfig) (int64, error) {
	node := NamespaceMode(cfg, IPC) == runtimeapi.NamespaceMode_NODE
	if text, ok := cfg.GetAnnotations()[ShmSizeAnnotation]; ok {
		if node {
			return 0, invalid("annotation %s of a pod with the node's IPC, whose /dev/shm is the node's", ShmSizeAnnotation)
		}
		return parseShmSize(ShmSizeAnnotation, text, []string{"", "Ki", "Mi", "Gi", "Ti"})
	}

	text, ok := cfg.GetAnnotations()[crioShmSize]
	if !ok || node {
		return 0, nil
	}

	// What is left of any form is the letter of its unit.
	short := strings.TrimSuffix(strings.ToLower(strings.ReplaceAll(text, " ", "")), "b")
	return parseShmSize(crioShmSize, strings.TrimSuffix(short, "i"), []string{"", "k", "m", "g", "t"})
}

// parseShmSize reads a size whose unit is one of five, each 1024 of the one before.
func parseShmSize(name, text string, units []string) (int64, error) {
	number := strings.TrimRight(text, "KMGTkmgti")
	unit := strings.TrimPrefix(text, number)
	for i, u := range units {
		if u != unit {
			continue
		}
		v, err := strconv.ParseFloat(number, 64)
		size := v * float64(int64(1)<<(10*i))
		if err != nil || strings.ContainsAny(number, "eExX_nNaAfF+-") {
			break
		}

		if !(size >= minShmSize && size <= maxShmSize) {
			return 0, invalid("annotation %s: %.40q is not from 4Ki to 16Ti", name, text)
		}
		return int64(size), nil
	}

	return 0, invalid("annotation %s: %.40q is no size; write a number of bytes, or one with a unit as in 256%s", name, text, units[2])
}
