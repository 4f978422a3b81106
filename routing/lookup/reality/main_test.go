// Package reality_test compares package lookup with the running kernel.
package reality_test

import (
	"os"
	"testing"

	"multihomed/test/lab/nettest"
	_ "multihomed/test/seeds"
)

// TestMain keeps the tests away from the machine's routing.
func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }
