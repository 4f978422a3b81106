package answers_test

import (
	"testing"

	"multihomed/test/puretest"
)

// TestDependencies keeps the package pure.
func TestDependencies(t *testing.T) {
	t.Parallel()
	puretest.Imports(t, "multihomed/routing")
}
