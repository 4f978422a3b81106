// Package reality_test compares package lookup with the running kernel.
package reality_test

import (
	"flag"
	"os"
	"testing"

	"multihomed/test/lab"
	"multihomed/test/lab/nettest"
	_ "multihomed/test/seeds"
)

// TestMain keeps the tests away from the machine's routing.
func TestMain(m *testing.M) {
	if os.Getenv(lab.SlowEnv) != "" {
		// An emulated machine, which is there for what its kernel knows.
		if err := flag.Set("rapid.checks", "15"); err != nil {
			panic(err)
		}
	}
	os.Exit(nettest.Main(m))
}
