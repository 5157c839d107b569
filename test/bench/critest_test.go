package main

import "testing"

func TestParseCritest(t *testing.T) {
	const data = `{"operationsNames": ["CreateContainer", "StartContainer"], "numParallel": 1, "datapoints": [
		{"sampleIndex": 0, "operationsDurationsNs": [1000000, 2500000]}, {"sampleIndex": 1, "operationsDurationsNs": [3000000, 4000000]}]}`
	all, err := parseCritest([]byte(data), "container")
	if err != nil || len(all) != 4 || all[1] != (Sample{Phase: "critest", Name: "StartContainer (container)", Value: 2.5, Unit: "ms"}) {
		t.Errorf("got %v, %v", all, err)
	}
	for _, bad := range []string{"{", `{"operationsNames": ["x"], "datapoints": [{"operationsDurationsNs": []}]}`} {
		if _, err := parseCritest([]byte(bad), ""); err == nil {
			t.Errorf("%s was read", bad)
		}
	}
}
