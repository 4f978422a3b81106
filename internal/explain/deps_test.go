package explain_test

import (
	"testing"

	"multihomed/test/puretest"
)

// TestDependencies keeps the package pure: whoever calls it reads the host and the files.
func TestDependencies(t *testing.T) {
	t.Parallel()
	puretest.Imports(t, "multihomed/routing", "multihomed/routing/lookup", "multihomed/internal/escape", "multihomed/internal/status")
}
