package hook_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"multihomed/cmd/internal/hook"
	"multihomed/cmd/internal/hooked"
)

func TestHandOver(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := hook.Message{Caller: "NetworkManager", Action: "up", Interface: "wan0"}
	if err := hook.Send(dir, m); !errors.Is(err, hook.ErrNobody) {
		t.Errorf("without a daemon: %v", err)
	}
	l, err := hook.Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, hook.Name))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket is %v, %v", info.Mode(), err)
	}
	// What comes before it is read is not lost.
	if err := hook.Send(dir, m); err != nil {
		t.Errorf("with a daemon: %v", err)
	}
	raw, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Net: "unixgram", Name: filepath.Join(dir, hook.Name)})
	if err != nil {
		t.Fatal(err)
	}
	for _, nonsense := range []string{"", "[]", "{", strings.Repeat("x", 100_000), `{"interface":7}`} {
		if _, err := raw.Write([]byte(nonsense)); err != nil {
			t.Fatal(err)
		}
	}
	if err := raw.Close(); err != nil {
		t.Fatal(err)
	}
	last := hook.Message{Caller: "NetworkManager", Action: "down", Interface: "wan1"}
	if err := hook.Send(dir, last); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var got []hook.Message
	err = l.Run(ctx, slog.New(slog.DiscardHandler), func(m hook.Message) {
		if got = append(got, m); reflect.DeepEqual(m, last) {
			cancel()
		}
	})
	if err != nil || len(got) != 2 || !reflect.DeepEqual(got[0], m) {
		t.Errorf("got %v, %v", got, err)
	}
	// What comes too late to be read is not lost in silence either.
	if err := hook.Send(dir, m); err != nil {
		t.Fatal(err)
	}
	if left, err := l.Close(); err != nil || !left {
		t.Errorf("left: %v, %v", left, err)
	}
	if err := hook.Send(dir, m); !errors.Is(err, hook.ErrNobody) {
		t.Errorf("after the daemon: %v", err)
	}
}

func TestADaemonThatHangsDelaysNobody(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l, err := hook.Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if left, err := l.Close(); err != nil || !left {
			t.Errorf("left: %v, %v", left, err)
		}
	}()
	began := time.Now()
	for n := 0; ; n++ {
		err := hook.Send(dir, hook.Message{Interface: "wan0"})
		if errors.Is(err, hook.ErrBusy) {
			break
		}
		if err != nil || n > 10_000 {
			t.Fatalf("message %d: %v", n, err)
		}
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestASocketThatIsLeftIsReplaced(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, hook.Name), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := hook.Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	if left, err := l.Close(); err != nil || left {
		t.Errorf("left: %v, %v", left, err)
	}
	if err := hook.Send(dir, hook.Message{Interface: strings.Repeat("x", 2000)}); err == nil {
		t.Error("a message without bound was sent")
	}
}

// Hints are left out where there is no room for them: that something happened
// matters more.
func TestHintsThatAreTooLong(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l, err := hook.Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	said := func(domain int) hook.Message {
		return hook.Message{Caller: "NetworkManager", Action: "up", Interface: "wan0", Hints: []hooked.Config{{Interface: "wan0", Index: 7, Domains: []string{strings.Repeat("x", domain)}}}}
	}
	if err := hook.Send(dir, hook.Message{Caller: strings.Repeat("x", 64<<10), Hints: said(1).Hints}); err == nil || !strings.Contains(err.Error(), "is the most") {
		t.Errorf("a message without bound: %v", err)
	}
	for _, domain := range []int{64 << 10, 60 << 10} {
		if err := hook.Send(dir, said(domain)); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	var got []hook.Message
	err = l.Run(ctx, slog.New(slog.DiscardHandler), func(m hook.Message) {
		if got = append(got, m); len(got) == 2 {
			cancel()
		}
	})
	without := said(0)
	without.Hints = nil
	if err != nil || len(got) != 2 || !reflect.DeepEqual(got, []hook.Message{without, said(60 << 10)}) {
		t.Errorf("got %.200v, %v", got, err)
	}
	if left, err := l.Close(); err != nil || left {
		t.Errorf("left: %v, %v", left, err)
	}
}
