package routing_test

import (
	"testing"

	"multihomed/test/puretest"
)

// TestDependencies keeps the package pure: nothing but the standard library,
// and of that nothing that touches the outside world or the clock.
func TestDependencies(t *testing.T) {
	t.Parallel()
	puretest.Imports(t)
}
