package scrape_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"multihomed/internal/metrics"
	"multihomed/internal/metrics/scrape"
)

const question = "GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n"

// served starts a server on TCP, and returns its address.
func served(t *testing.T, document scrape.Document) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it is there at once
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() {
		s := scrape.Server{Document: document, Fault: func(error) {}, Idle: time.Hour}
		if err := s.Serve(ctx, l); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { stop(); done.Wait() })
	return l.Addr().String()
}

// TestOldestGivesWay: a full room has a place for one who asks, and only one has to go.
func TestOldestGivesWay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHall()
		var server sync.WaitGroup
		server.Go(func() {
			s := scrape.Server{Document: document, Fault: func(error) {}, Idle: time.Minute}
			if err := s.Serve(t.Context(), h); err != nil {
				t.Error(err)
			}
		})
		silent := make([]net.Conn, scrape.Most)
		for i := range silent {
			silent[i] = h.dial()
		}
		asks := func(conn net.Conn) string {
			_, _ = io.WriteString(conn, question)
			answer, _ := io.ReadAll(conn)
			return string(answer)
		}
		if answer := asks(h.dial()); !strings.HasPrefix(answer, "HTTP/1.1 200 ") {
			t.Errorf("the last one gets %q", answer)
		}
		if rest, err := io.ReadAll(silent[0]); err != nil || len(rest) > 0 {
			t.Errorf("the first one gets %q, %v", rest, err)
		}
		if answer := asks(silent[1]); !strings.HasPrefix(answer, "HTTP/1.1 200 ") {
			t.Errorf("the second one gets %q", answer)
		}
		server.Wait()
	})
}

// TestCrowd has 100 connections of others in the way of one client, who always gets its answer. Whoever is thrown out
// comes again at once.
func TestCrowd(t *testing.T) { //nolint:tparallel // one crowd at a time is enough for the processors
	t.Parallel()
	// More than the kernel keeps for one who does not read.
	text := strings.Repeat("multihomed_up 1\n", 1<<15)
	const nothing, brief = "reads nothing", "goes at once"
	hold := func(_ context.Context, c net.Conn) { _, _ = io.Copy(io.Discard, c) }
	for name, talk := range map[string]func(context.Context, net.Conn){
		"silent":          hold,
		"half a question": func(ctx context.Context, c net.Conn) { _, _ = io.WriteString(c, question[:20]); hold(ctx, c) },
		brief:             func(context.Context, net.Conn) {},
		"asks nonsense":   func(ctx context.Context, c net.Conn) { _, _ = io.WriteString(c, "\n\n"); hold(ctx, c) },
		"never closes": func(ctx context.Context, c net.Conn) {
			_, _ = io.WriteString(c, question)
			hold(ctx, c) // Until the server ends its side.
			<-ctx.Done()
		},
		// They are more than have a place, and do not go.
		nothing: func(ctx context.Context, c net.Conn) { _, _ = io.WriteString(c, question); <-ctx.Done() },
	} {
		t.Run(name, func(t *testing.T) {
			address := served(t, func(context.Context, metrics.Format) ([]byte, error) { return []byte(text), nil })
			ctx, stop := context.WithCancel(t.Context())
			var crowd sync.WaitGroup
			defer crowd.Wait()
			defer stop()
			var came atomic.Int64
			n := 100
			switch name {
			case nothing:
				n = scrape.Most + 100
			case brief: // More would fill the kernel's queue, in which all wait.
				n = 5
			}
			for range n {
				crowd.Go(func() {
					for ctx.Err() == nil {
						var d net.Dialer
						conn, err := d.DialContext(ctx, "tcp", address)
						if err != nil {
							return
						}
						came.Add(1)
						over := context.AfterFunc(ctx, func() { _ = conn.Close() })
						talk(ctx, conn)
						over()
						_ = conn.Close()
					}
				})
			}
			for i := range 10 {
				if err := ask(ctx, address, text); err != nil {
					t.Fatalf("scrape %d, while %d others came: %v", i, came.Load(), err)
				}
			}
		})
	}
}

func ask(ctx context.Context, address, want string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+scrape.Path, nil)
	if err != nil {
		return err
	}
	// A client that is sent away may not come again: that would hide it.
	transport := &http.Transport{DisableKeepAlives: true}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || string(body) != want || response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s with %d bytes: %w", response.Status, len(body), err)
	}
	return nil
}

// A hall is a listener in memory.
type hall struct {
	net.Listener
	came chan net.Conn
	shut sync.Once
}

func newHall() *hall { return &hall{came: make(chan net.Conn)} }

func (h *hall) Accept() (net.Conn, error) {
	if conn, open := <-h.came; open {
		return conn, nil
	}
	return nil, net.ErrClosed
}

func (h *hall) Close() error { h.shut.Do(func() { close(h.came) }); return nil }

func (h *hall) dial() net.Conn {
	near, far := net.Pipe()
	h.came <- near
	return far
}

// TestOneAnswer: who asks while an answer is made waits for the next one, with all others who do.
func TestOneAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan string)
		made := 0
		h := newHall()
		var server sync.WaitGroup
		server.Go(func() {
			s := scrape.Server{Fault: func(error) {}, Idle: time.Minute, Document: func(context.Context, metrics.Format) ([]byte, error) {
				made++
				return []byte(<-gate), nil
			}}
			if err := s.Serve(t.Context(), h); err != nil {
				t.Error(err)
			}
		})
		got := map[string]int{}
		var mu sync.Mutex
		var clients sync.WaitGroup
		asks := func() {
			conn := h.dial()
			clients.Go(func() {
				_, _ = io.WriteString(conn, question)
				answer, _ := io.ReadAll(conn)
				_ = conn.Close()
				mu.Lock()
				defer mu.Unlock()
				got[string(answer[strings.LastIndex(string(answer), "\n")+1:])]++
			})
		}
		asks()
		synctest.Wait()
		for range 50 {
			asks()
		}
		synctest.Wait()
		gate <- "old"
		gate <- "new"
		clients.Wait()
		if made != 2 || got["old"] != 1 || got["new"] != 50 {
			t.Errorf("%d answers were made: %v", made, got)
		}
		server.Wait() // It ends when it is idle.
	})
}

// TestIdle: it ends some time after the last client.
func TestIdle(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began, told := time.Now(), 0
		h := newHall()
		go func() {
			<-time.After(9 * time.Second)
			for range 100 { // They ask nothing.
				_ = h.dial().Close()
			}
			<-time.After(9 * time.Second)
			_ = h.dial() // This one stays until it is too long.
		}()
		s := scrape.Server{Document: document, Fault: func(err error) {
			told++
			if want := []string{"", "99 more clients failed", "i/o timeout"}[min(told, 3)-1]; !strings.HasSuffix(err.Error(), want) {
				t.Errorf("%v; want %s", err, want)
			}
		}, Idle: 10 * time.Second}
		if err := s.Serve(t.Context(), h); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took < 33*time.Second || took > 44*time.Second {
			t.Errorf("it ended after %v", took)
		}
		if told != 3 {
			t.Errorf("%d faults are told", told)
		}
	})
}

// TestBroken: a socket that fails is an error.
func TestBroken(t *testing.T) {
	t.Parallel()
	why := errors.New("no")
	s := scrape.Server{Document: document, Fault: func(error) {}, Idle: time.Hour}
	if err := s.Serve(t.Context(), newHall(), broken{newHall(), why}); !errors.Is(err, why) {
		t.Error(err)
	}
}

type broken struct {
	*hall
	err error
}

func (b broken) Accept() (net.Conn, error) { return nil, b.err }
