package main

import (
	"testing"

	"crisp/test/testkit/specs"
)

func TestExcuses(t *testing.T) {
	excuses, err := specs.ParseExcuses(skips)
	if err != nil {
		t.Fatal(err)
	}
	if len(excuses.LeftOut()) == 0 {
		t.Error("the list leaves nothing out")
	}
}
