package vm_test

import (
	"context"
	"testing"
	"time"

	"multihomed/test/vm"
)

func TestTry(t *testing.T) {
	for _, release := range []string{"bookworm", "trixie"} {
		began := time.Now()
		m := start(t, release)
		t.Log(release, "up", time.Since(began))
		began = time.Now()
		out, err := m.Run(t.Context(), "sh", "-c", "pwd; uname -a; cat /proc/uptime; id; ls; df -h; modprobe wireguard; lsmod; ip link add dev x type wireguard; ip link; dmesg | tail -30")
		t.Log(time.Since(began), out, err)
		began = time.Now()
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		t.Log("closed", time.Since(began))
	}
}

func start(t *testing.T, release string) *vm.Machine {
	ctx, cancel := context.WithTimeout(t.Context(), 25*time.Second)
	defer cancel()
	m, err := vm.Start(ctx, vm.Config{Release: release})
	if err != nil {
		t.Fatal(err)
	}
	return m
}
