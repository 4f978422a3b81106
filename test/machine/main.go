package machine

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"multihomed/test/lab"
)

// rootsEnv tells the copies of the program that lab.Main starts that the roots are
// there. Its value names the releases.
const rootsEnv = "MULTIHOMED_MACHINE_ROOTS"

// Main is lab.Main for a program that boots machines of these releases: it makes
// their roots first, on the host, if they are not there yet. What is missing is
// one line on standard error and status 1.
//
//	func TestMain(m *testing.M) { os.Exit(machine.Main(m.Run, machine.Bookworm)) }
func Main(run func() int, releases ...string) int {
	if !slices.Equal(strings.Fields(os.Getenv(rootsEnv)), releases) {
		if err := prepare(releases); err != nil {
			fmt.Fprintf(os.Stderr, "machine: %v\n", err)
			return 1
		}
		if err := os.Setenv(rootsEnv, strings.Join(releases, " ")); err != nil {
			fmt.Fprintf(os.Stderr, "machine: %v\n", err)
			return 1
		}
	}
	return lab.Main(func() int {
		// A child may be a program with its own machines.
		_ = os.Unsetenv(rootsEnv)
		return run()
	})
}

func prepare(releases []string) error {
	build := false
	for _, release := range releases {
		dir, err := rootDir(release)
		if err != nil {
			return err
		}
		build = build || !isDir(dir)
	}
	if err := checkPrograms(build); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	for _, release := range releases {
		if _, err := Root(ctx, release); err != nil {
			return err
		}
	}
	return nil
}
