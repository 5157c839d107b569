package spec

import (
	"strconv"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// ShmSizeAnnotation is the annotation with the size of a pod's /dev/shm: a
	// number of bytes, or a number with the unit Ki, Mi, Gi or Ti.
	ShmSizeAnnotation = "crisp.runtime/shm-size"
	// crioShmSize is CRI-O's annotation. Its units are powers of 1024 with or
	// without an i, in any case: "64m", "1.5GiB".
	crioShmSize = "io.kubernetes.cri-o.ShmSize"
	// minShmSize is one page: 0 would mean no limit at all. What a /dev/shm holds
	// counts as the pod's memory, so the upper bound is just beyond any machine's
	// memory.
	minShmSize, maxShmSize = 4096, 1 << 44
)

// shmSize returns the size in bytes of a pod's /dev/shm, 0 for the default.
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

	// All forms come down to the letter of the unit.
	short := strings.TrimSuffix(strings.ToLower(strings.ReplaceAll(text, " ", "")), "b")
	return parseShmSize(crioShmSize, strings.TrimSuffix(short, "i"), []string{"", "k", "m", "g", "t"})
}

// parseShmSize parses a size whose unit is one of five, each 1024 times the one
// before.
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

	return 0, invalid("annotation %s: %.40q is not a size; write a number of bytes, or a number with a unit as in 256%s", name, text, units[2])
}
