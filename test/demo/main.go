// Demo shows the main job in a private lab: a real bus, a real NetworkManager and
// two providers in namespaces that cannot touch this machine. It ends with a
// status other than zero if anything it claims did not happen.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"multihomed/test/lab"
)

func main() { os.Exit(lab.Main(run)) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// Everything here takes seconds; what takes this long has failed.
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()

	self, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo: finding the programs:", err)
		return 1
	}
	d := &demo{stage: newStage(os.Stdout), ctx: ctx, bin: filepath.Dir(self)}
	defer d.close()
	for _, scene := range []func() error{
		d.buildLab, d.showProblem, d.startDaemon, d.showState, d.provePackets, d.downAndUp, d.dieSilently, d.proveMain, d.leave,
	} {
		if err := scene(); err != nil {
			d.fail("the demo cannot continue: %v", err)
			if d.daemon != nil {
				d.quote(d.daemon.Log())
			}
			break
		}
	}
	return d.verdict()
}
