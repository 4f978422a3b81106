package scrape_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"multihomed/internal/metrics"
	"multihomed/internal/metrics/scrape"
)

// document says in which format it is.
func document(_ context.Context, f metrics.Format) ([]byte, error) {
	return []byte(map[metrics.Format]string{metrics.OpenMetrics: "open", metrics.Prometheus: "plain"}[f]), nil
}

// exchange sends bytes over a socket, and returns all that comes back.
func exchange(t *testing.T, request string, produce func(context.Context, metrics.Format) ([]byte, error)) (string, error) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s")) //nolint:noctx // it is there at once
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	served := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			err = scrape.ServeOne(t.Context(), conn, produce)
		}
		served <- err
	}()
	conn, err := net.Dial("unix", l.Addr().String()) //nolint:noctx // it is there at once
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// Whoever sends too much is not read to the end.
	_, _ = io.WriteString(conn, request)
	_ = conn.(*net.UnixConn).CloseWrite()
	answer, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	return string(answer), <-served
}

// The fields Accept of Prometheus 2.42 and 3.5.
const (
	accept2 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
	accept3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5," +
		"text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)

func TestServe(t *testing.T) {
	t.Parallel()
	get := func(target, fields string) string {
		return "GET " + target + " HTTP/1.1\r\nHost: h\r\n" + fields + "\r\n"
	}
	for name, c := range map[string]struct {
		request string
		status  int
		body    string
	}{
		"no accept":          {get("/metrics", ""), 200, "plain"},
		"Prometheus 2":       {get("/metrics", "Accept: "+accept2+"\r\n"), 200, "open"},
		"Prometheus 3":       {get("/metrics", "aCCEPT:"+accept3+"\r\n"), 200, "open"},
		"browser":            {get("/metrics", "Accept: text/html,*/*;q=0.8\r\n"), 200, "plain"},
		"plain is preferred": {get("/metrics", "Accept: application/openmetrics-text;q=0.2, text/plain;q=0.3\r\n"), 200, "plain"},
		"open is refused":    {get("/metrics", "Accept: application/openmetrics-text;q=0\r\n"), 200, "plain"},
		"another version":    {get("/metrics", "Accept: application/openmetrics-text;version=2.0.0\r\n"), 200, "plain"},
		"nonsense in accept": {get("/metrics", "Accept: ;;, a/b;q=x, application/openmetrics-text\r\n"), 200, "open"},
		"two fields":         {get("/metrics", "Accept: text/html\r\nAccept: application/openmetrics-text\r\n"), 200, "open"},
		"query":              {get("/metrics?name=x", ""), 200, "plain"},
		"whole URL":          {get("http://127.0.0.1:28008/metrics", ""), 200, "plain"},
		"HTTP/1.0":           {"GET /metrics HTTP/1.0\r\n\r\n", 200, "plain"},
		"line feeds alone":   {"GET /metrics HTTP/1.1\nHost: h\n\n", 200, "plain"},
		"empty line first":   {"\r\n" + get("/metrics", ""), 200, "plain"},
		"two requests":       {get("/metrics", "") + get("/metrics", ""), 200, "plain"},
		"other path":         {get("/", ""), 404, "the metrics are at /metrics\n"},
		"URL without a path": {get("http://h", ""), 404, "the metrics are at /metrics\n"},
		"dots":               {get("/metrics/../etc", ""), 404, "the metrics are at /metrics\n"},
		"POST":               {"POST /metrics HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbody", 405, "metrics can be read with GET and HEAD\n"},
		"HTTP/2":             {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "HTTP/1.1 and HTTP/1.0 are spoken here\n"},
		"TLS":                {"\x16\x03\x01\x02\x00\x01\n", 400, "there is a control character in the request\n"},
		"two words":          {"GET /metrics\r\n\r\n", 400, "this is no request of HTTP/1.1\n"},
		"no host":            {"GET /metrics HTTP/1.1\r\n\r\n", 400, "a request has one Host\n"},
		"two hosts":          {get("/metrics", "Host: i\r\n"), 400, "a request has one Host\n"},
		"folded field":       {get("/metrics", "X: a\r\n b\r\n"), 400, "a line of the header is no field\n"},
		"space in a name":    {get("/metrics", "X : a\r\n"), 400, "a line of the header is no field\n"},
		"star":               {"GET * HTTP/1.1\r\nHost: h\r\n\r\n", 400, "the target of the request is no path\n"},
		"not complete":       {"GET /metrics HTTP/1.1\r\nHost", 400, "the request is not complete\n"},
		"long line":          {get("/"+strings.Repeat("a", 20<<10), ""), 431, "a request may have 16384 bytes\n"},
		"long header":        {get("/metrics", strings.Repeat("X: y\r\n", 4<<10)), 431, "a request may have 16384 bytes\n"},
		"endless":            {strings.Repeat("a", 60<<10), 431, "a request may have 16384 bytes\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text, err := exchange(t, c.request, document)
			if err != nil {
				t.Error(err)
			}
			// Another program's reader understands it, and nothing follows.
			in := bufio.NewReader(strings.NewReader(text))
			answer, err := http.ReadResponse(in, nil)
			if err != nil {
				t.Fatalf("%v\n%s", err, text)
			}
			defer answer.Body.Close()
			body, err := io.ReadAll(answer.Body)
			if err != nil || answer.StatusCode != c.status || string(body) != c.body || !answer.Close || in.Buffered() > 0 {
				t.Errorf("%v, closes %v, and more: %d\n%s", err, answer.Close, in.Buffered(), text)
			}
			want := "text/plain; charset=utf-8"
			switch {
			case c.body == "open":
				want = metrics.OpenMetrics.ContentType()
			case c.status == http.StatusOK:
				want = metrics.Prometheus.ContentType()
			}
			if got := answer.Header.Get("Content-Type"); got != want {
				t.Errorf("it says that it is %s", got)
			}
			if allow := answer.Header.Get("Allow"); (allow == "GET, HEAD") != (c.status == http.StatusMethodNotAllowed) {
				t.Errorf("Allow is %q", allow)
			}
		})
	}
}

func TestHead(t *testing.T) {
	t.Parallel()
	fails := func(context.Context, metrics.Format) ([]byte, error) { return nil, errors.New("no") }
	for _, c := range []struct {
		request, status, length string
		produce                 func(context.Context, metrics.Format) ([]byte, error)
	}{
		{"HEAD /metrics HTTP/1.1\r\nHost: h\r\n\r\n", "200", "5", document},
		{"HEAD /x HTTP/1.1\r\nHost: h\r\n\r\n", "404", "28", document},
		{"HEAD /metrics HTTP/1.1\r\n\r\n", "400", "23", document},
		{"HEAD /metrics HTTP/2.0\r\n\r\n", "505", "38", document},
		{"HEAD /metrics HTTP/1.1\r\nHost: h\r\n\r\n", "500", "3", fails},
	} {
		text, err := exchange(t, c.request, c.produce)
		if (err != nil) != (c.status == "500") || !strings.HasPrefix(text, "HTTP/1.1 "+c.status) || !strings.Contains(text, "\r\nContent-Length: "+c.length+"\r\n") || !strings.HasSuffix(text, "\r\n\r\n") {
			t.Errorf("%q: %v\n%s", c.request, err, text)
		}
	}
}

// TestUnreadHost: the client reads why, and so does the journal.
func TestUnreadHost(t *testing.T) {
	t.Parallel()
	why := errors.New("the kernel cannot be read")
	text, err := exchange(t, "GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n", func(context.Context, metrics.Format) ([]byte, error) { return nil, why })
	if !errors.Is(err, why) || !strings.HasPrefix(text, "HTTP/1.1 500 ") || !strings.HasSuffix(text, why.Error()+"\n") {
		t.Errorf("%v\n%s", err, text)
	}
}

// TestNothingAsked: who connects and goes gets nothing.
func TestNothingAsked(t *testing.T) {
	t.Parallel()
	if text, err := exchange(t, "", document); !errors.Is(err, io.EOF) || text != "" {
		t.Errorf("%v\n%s", err, text)
	}
}

// TestSlowClients: neither who sends slowly nor who does not read holds up the process for long.
func TestSlowClients(t *testing.T) {
	t.Parallel()
	for name, talk := range map[string]func(net.Conn){
		"silent": func(net.Conn) {},
		"slow": func(c net.Conn) {
			for {
				if _, err := io.WriteString(c, "a"); err != nil {
					return
				}
				<-time.After(time.Second)
			}
		},
		"reads nothing": func(c net.Conn) { _, _ = io.WriteString(c, "GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				near, far := net.Pipe()
				began := time.Now()
				go talk(far)
				err := scrape.ServeOne(t.Context(), near, document)
				if err == nil {
					t.Error("it was served")
				}
				if took := time.Since(began); took > 11*time.Second {
					t.Errorf("it took %v", took)
				}
				_ = far.Close()
			})
		})
	}
}

func FuzzServe(f *testing.F) {
	f.Add("GET /metrics HTTP/1.1\r\nHost: h\r\nAccept: " + accept2 + "\r\n\r\n")
	f.Add("\r\n\r\nGET http:///metrics HTTP/1.0\n\n")
	f.Fuzz(func(t *testing.T, request string) {
		near, far := net.Pipe()
		go func() { _, _ = io.Copy(io.Discard, far) }()
		go func() {
			_, _ = io.WriteString(far, request+"\r\n\r\n")
			_ = far.Close()
		}()
		// Any answer or none, in bounded time.
		_ = scrape.ServeOne(t.Context(), near, document)
	})
}
