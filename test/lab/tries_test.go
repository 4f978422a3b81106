package lab_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"multihomed/test/lab"
	"multihomed/test/lab/labtest"
)

func TestOutage(t *testing.T) {
	begin := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	// Each letter is a question of 20 ms: good, failed, or over another network.
	of := func(text string) (all []lab.Try) {
		for i, c := range text {
			try := lab.Try{At: begin.Add(time.Duration(i) * 20 * time.Millisecond), Network: "udp"}
			switch c {
			case 'f':
				try.Err = errors.New("failed")
			case 't':
				try.Network, try.Err = "tcp", errors.New("failed")
			}
			all = append(all, try)
		}
		return all
	}
	for text, want := range map[string]string{
		"":               "0s 0 false",
		"ffff":           "0s 4 false",
		"gggg":           "0s 0 true",
		"ffffg":          "80ms 4 true",
		"ggffgg":         "80ms 2 true",
		"ffgffggfff":     "100ms 4 true", // the last three were open
		"gtttg":          "0s 0 true",
		"fgtgf":          "20ms 1 true",
		"ffffffffgfffff": "160ms 8 true",
	} {
		d, failed, ended := lab.Outage(of(text), "udp", begin)
		if got := fmt.Sprint(d, failed, ended); got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
	if d, failed, ended := lab.Outage(of("ffgffg"), "udp", begin.Add(50*time.Millisecond)); d != 50*time.Millisecond || failed != 2 || !ended {
		t.Errorf("after the first three: %v, %d, %t", d, failed, ended)
	}
}

func TestTries(t *testing.T) {
	host, isp, wire := wired(t)
	tries := host.NewTries(t.Context(), 5*time.Millisecond, lab.From{}, lab.InternetAddr4, "udp", "tcp")
	wait := func(ok func(lab.Try) bool) {
		t.Helper()
		begin := time.Now()
		labtest.Eventually(t, func() error {
			missing := map[string]bool{"udp": true, "tcp": true}
			for _, try := range tries.SoFar() {
				if try.At.After(begin) && ok(try) {
					missing[try.Network] = false
				}
			}
			if missing["udp"] || missing["tcp"] {
				return fmt.Errorf("missing are %v", missing)
			}
			return nil
		})
	}
	wait(func(try lab.Try) bool { return try.ISP == isp.Name() })
	wire.Break(lab.Silent)
	broken := time.Now()
	wait(func(try lab.Try) bool { return try.Err != nil })
	wire.Repair()
	wait(func(try lab.Try) bool { return try.ISP == isp.Name() })
	all := tries.Stop()
	for _, network := range []string{"udp", "tcp"} {
		d, failed, ended := lab.Outage(all, network, broken)
		if d <= 0 || failed == 0 || !ended {
			t.Errorf("%s was out for %v, with %d failures, ended %t", network, d, failed, ended)
		}
	}
}
