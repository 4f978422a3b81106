//go:build debiankernel

package e2e_test

import (
	"fmt"
	"testing"
	"time"

	"multihomed/test/lab"
)

// TestFailoverNetem is the kernel's own loss of a tenth each way, on the link that main prefers, for a
// minute. Package debian runs it: the kernel of the test host may have no netem. An emulated machine may
// leave the servers without a processor for half a second, so the silence that counts is stretched; how
// many losses in a row count is not.
func TestFailoverNetem(t *testing.T) {
	toml := quickToml + fmt.Sprintf("silence = %q\n", lab.Stretched(500*time.Millisecond))
	f := newFailing(t, lab.HostConfig{FastDAD: true}, toml, 2, func(_ int, cfg *lab.ISPConfig) { cfg.Wire = false })
	f.begin()
	f.monitor = newMonitor(t)
	for _, where := range [][]string{nil, {"-n", "isp0"}} {
		_, err := f.Run(t.Context(), "tc", append(where, "qdisc", "add", "dev", "wan0", "root", "netem", "loss", "10%")...)
		f.must(err)
	}
	began, times := time.Now(), 0
	for time.Since(began) < time.Minute && !t.Failed() {
		f.unmoved(50)
		times++
	}
	t.Logf("no move and no death in %v, while %d questions of each family were answered", time.Since(began).Round(time.Second), 50*times)
	drops, err := f.Run(t.Context(), "tc", "-s", "qdisc", "show", "dev", "wan0")
	f.must(err)
	t.Log(drops)
}
