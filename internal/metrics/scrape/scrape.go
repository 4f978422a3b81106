// Package scrape answers HTTP requests for metrics on sockets that somebody else opened, such as
// systemd. It is no web server: it knows one path, and keeps no connection.
package scrape

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"multihomed/internal/metrics"
)

const (
	// Path is where the metrics are.
	Path = "/metrics"
	// longest bounds a request in bytes, with its header.
	longest = 16 << 10
	// readTime bounds the time in which it must come, writeTime that in which the answer must be
	// taken.
	readTime, writeTime = 5 * time.Second, 5 * time.Second
	// leftover and leftTime bound what is read after the answer: a connection that is closed with
	// something unread is reset, and the answer lost (RFC 9112, section 9.6).
	leftover, leftTime = 64 << 10, time.Second
)

// errGaveWay says that another client got the place of this one.
var errGaveWay = errors.New("a client that did not ask gave way to another one")

// serve reads one request from a client, answers it, and closes the connection. Document's error is
// the client's to read. What goes wrong with the connection is an error, also that no request came.
func serve(ctx context.Context, conn *guest, document Document) error {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := conn.SetReadDeadline(time.Now().Add(readTime)); err != nil {
		return fmt.Errorf("bounding the wait for a request: %w", err)
	}
	q, err := read(conn)
	if !conn.to(waiting) {
		return errGaveWay
	}
	refuse := func(r *refusal) error {
		a := r.answer()
		a.isHead = q.isHead
		return finish(conn, a)
	}
	switch refused, is := errors.AsType[*refusal](err); {
	case is:
		return refuse(refused)
	case errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil:
		return refuse(&refusal{"408 Request Timeout", "no complete request came within " + readTime.String()})
	case err != nil:
		return fmt.Errorf("reading a request: %w", err)
	}
	body, err := document(ctx, q.format)
	if err != nil {
		return errors.Join(err, refuse(&refusal{"500 Internal Server Error", err.Error()}))
	}
	a := answer{status: "200 OK", kind: q.format.ContentType(), body: body, isHead: q.isHead}
	return finish(conn, a)
}

// A request is one that is answered.
type request struct {
	isHead bool
	format metrics.Format
}

// A refusal is an answer that says what is wrong with a request.
type refusal struct{ status, text string }

func (r *refusal) Error() string { return r.status + ": " + r.text }

func (r *refusal) answer() answer {
	a := answer{status: r.status, kind: "text/plain; charset=utf-8", body: []byte(r.text + "\n")}
	if strings.HasPrefix(r.status, "405") {
		a.more = "Allow: GET, HEAD\r\n"
	}
	return a
}

func bad(text string) error { return &refusal{"400 Bad Request", text} }

// read reads a request (RFC 9112) and judges it. Whether it is one for the header alone is also known of one that is
// refused, once its first line has come.
func read(from io.Reader) (q request, _ error) {
	limited := &io.LimitedReader{R: from, N: longest}
	lines := bufio.NewReaderSize(limited, longest)
	line, err := next(lines, limited)
	if err != nil {
		return request{}, err
	}
	if line == "" { // One empty line before the request is ignored (section 2.2).
		if line, err = next(lines, limited); err != nil {
			return request{}, err
		}
	}
	words := strings.Split(line, " ")
	if len(words) != 3 || !isToken(words[0]) || words[1] == "" {
		return request{}, bad("this is no request of HTTP/1.1")
	}
	method, target, version := words[0], words[1], words[2]
	q.isHead = method == "HEAD"
	if version != "HTTP/1.1" && version != "HTTP/1.0" {
		if strings.HasPrefix(version, "HTTP/") {
			return q, &refusal{"505 HTTP Version Not Supported", "HTTP/1.1 and HTTP/1.0 are spoken here"}
		}
		return q, bad("this is no request of HTTP/1.1")
	}
	hosts := 0
	var accept []string
	for {
		if line, err = next(lines, limited); err != nil {
			return q, err
		}
		if line == "" {
			break
		}
		name, value, is := strings.Cut(line, ":")
		if !is || !isToken(name) {
			return q, bad("a line of the header is no field")
		}
		switch strings.ToLower(name) {
		case "host":
			hosts++
		case "accept":
			accept = append(accept, value)
		}
	}
	if hosts > 1 || hosts == 0 && version == "HTTP/1.1" {
		return q, bad("a request has one Host")
	}
	switch path, known := pathOf(target); {
	case !known:
		return q, bad("the target of the request is no path")
	case path != Path:
		return q, &refusal{"404 Not Found", "the metrics are at " + Path}
	case method != "GET" && method != "HEAD":
		return q, &refusal{"405 Method Not Allowed", "metrics can be read with GET and HEAD"}
	}
	q.format = choose(accept)
	return q, nil
}

// next reads a line without its end.
func next(lines *bufio.Reader, limited *io.LimitedReader) (string, error) {
	line, err := lines.ReadSlice('\n')
	switch {
	case err == nil:
	case limited.N <= 0 || errors.Is(err, bufio.ErrBufferFull):
		return "", &refusal{"431 Request Header Fields Too Large", "a request may have " + strconv.Itoa(longest) + " bytes"}
	case errors.Is(err, io.EOF) && len(line) > 0:
		return "", bad("the request is not complete")
	default:
		return "", err //nolint:wrapcheck // the caller says what it did
	}
	line = bytes.TrimSuffix(line[:len(line)-1], []byte("\r"))
	for _, b := range line {
		if b < ' ' && b != '\t' || b == 0x7f {
			return "", bad("there is a control character in the request")
		}
	}
	return string(line), nil
}

// isToken reports whether a word is a token (RFC 9110, section 5.6.2).
func isToken(word string) bool {
	for _, r := range word {
		isAlnum := 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9'
		if !isAlnum && !strings.ContainsRune("!#$%&'*+-.^_`|~", r) {
			return false
		}
	}
	return word != ""
}

// pathOf is the path of a target, which is one or a whole URL (RFC 9112, section 3.2).
func pathOf(target string) (path string, known bool) {
	if len(target) > len("http://") && strings.EqualFold(target[:len("http://")], "http://") {
		_, rest, has := strings.Cut(target[len("http://"):], "/")
		if !has {
			return "/", true
		}
		target = "/" + rest
	}
	path, _, _ = strings.Cut(target, "?")
	return path, strings.HasPrefix(path, "/")
}

// choose returns the format that a client prefers, by the fields Accept of its request (RFC 9110,
// section 12.5.1). OpenMetrics must be named: a browser that takes anything gets what it can show.
func choose(accept []string) metrics.Format {
	const open, plain = "application/openmetrics-text", "text/plain"
	best, other := 0.0, 0.0
	for part := range strings.SplitSeq(strings.Join(accept, ","), ",") {
		kind, parameters, err := mime.ParseMediaType(part)
		if err != nil {
			continue
		}
		q := 1.0
		if text, has := parameters["q"]; has {
			if q, err = strconv.ParseFloat(text, 64); err != nil || !(q >= 0 && q <= 1) {
				continue
			}
		}
		version := parameters["version"]
		switch kind {
		case open:
			if version == "" || version == "1.0.0" || version == "0.0.1" {
				best = max(best, q)
			}
		case plain, "text/*", "*/*":
			other = max(other, q)
		}
	}
	if best > 0 && best >= other {
		return metrics.OpenMetrics
	}
	return metrics.Prometheus
}

// An answer is what is sent.
type answer struct {
	status, kind, more string
	body               []byte
	isHead             bool
}

// finish sends the answer, and lets the client read it.
func finish(conn *guest, a answer) error {
	head := "HTTP/1.1 " + a.status + "\r\nContent-Type: " + a.kind + "\r\nContent-Length: " + strconv.Itoa(len(a.body)) +
		"\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n" + a.more + "Connection: close\r\n\r\n"
	if a.isHead {
		a.body = nil
	}
	if err := conn.SetWriteDeadline(time.Now().Add(writeTime)); err != nil {
		return fmt.Errorf("bounding the time of the answer: %w", err)
	}
	parts := net.Buffers{[]byte(head), a.body}
	if _, err := parts.WriteTo(conn); err != nil {
		return fmt.Errorf("answering: %w", err)
	}
	conn.to(leaving)
	drain(conn.Conn)
	return nil
}

// drain ends the answer, and reads on until the client has closed, has sent enough, or a while is over.
func drain(conn net.Conn) {
	half, is := conn.(interface{ CloseWrite() error })
	if is && half.CloseWrite() == nil && conn.SetReadDeadline(time.Now().Add(leftTime)) == nil {
		_, _ = io.CopyN(io.Discard, conn, leftover)
	}
}
