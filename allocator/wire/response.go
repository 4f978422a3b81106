package wire

import (
	"errors"
	"fmt"
	"math"
	"strings"

	"multihomed/routing"
)

// Encode writes a response. The text of a refusal is cut where the reply would
// be longer than a client of its version reads.
func (r Response) Encode() []byte {
	var w writer
	if r.Version == 2 {
		w.number("version", 2)
	} else {
		w.number("version", 1)
	}
	if r.Refused != nil {
		return r.refusal(&w)
	}
	w.number("cmd", uint64(Reply))
	w.number("table", uint64(r.Table))
	w.number("lease_expires", uint64(r.Expires))
	if r.Version == 2 {
		w.number("lifetime", uint64(r.Lifetime))
		w.number("transaction", uint64(r.Transaction))
		w.yes("routing", r.Routing)
	}
	return w.end()
}

func (r Response) refusal(w *writer) []byte {
	w.number("cmd", uint64(Refusal))
	limit := maxResponse1
	if r.Version == 2 {
		w.number("transaction", uint64(r.Transaction))
		limit = MaxResponse
	}
	// A code is a word of ours; only a mistake in the server makes it long.
	w.text("code", cut(strings.ToValidUTF8(string(r.Refused.Code), ""), 32))
	w.key("error")
	const rest = len(`""}`)
	text := strings.ToValidUTF8(r.Refused.Text, "")
	w.out = appendString(w.out, fit(text, limit-len(w.out)-rest))
	return w.end()
}

// fit cuts text so that its JSON, without the quotes, has at most n bytes.
func fit(text string, n int) string {
	end := 0
	for i, c := range text {
		if n -= len(appendString(nil, string(c))) - len(`""`); n < 0 {
			return text[:end]
		}
		end = i + len(string(c))
	}
	return text
}

// DecodeResponse reads a response. A refusal is not an error here: see
// Response.Refused.
func DecodeResponse(datagram []byte) (Response, error) {
	if len(datagram) > MaxResponse {
		return Response{}, fmt.Errorf("the reply has %d bytes; %d is the most", len(datagram), MaxResponse)
	}
	members, refused := parse(datagram)
	if refused != nil {
		return Response{}, fmt.Errorf("reading the reply: %w", asError(refused))
	}
	r, err := members.response()
	if err != nil {
		return Response{}, fmt.Errorf("reading the reply: %w", err)
	}
	return r, nil
}

// asError makes a plain error of a mistake in a reply: a *Error that comes out
// of the codec would look like the server's refusal.
func asError(refused *Error) error { return errors.New(refused.Text) }

func (o object) response() (Response, error) {
	version, err := o.needed("version")
	if err != nil {
		return Response{}, err
	}
	if version != 1 && version != 2 {
		return Response{}, fmt.Errorf("version %d of the protocol is unknown", version)
	}
	r := Response{Version: int(version)}
	if version == 2 {
		if r.Transaction, err = o.needed("transaction"); err != nil {
			return Response{}, err
		}
	}
	command, err := o.needed("cmd")
	switch {
	case err != nil:
	case command == uint32(Reply):
		err = o.granted(&r)
	case command == uint32(Refusal):
		err = o.refused(&r)
	default:
		err = fmt.Errorf("command %d is not one of a reply", command)
	}
	return r, err
}

func (o object) granted(r *Response) (err error) {
	table, err := o.needed("table")
	if err != nil {
		return err
	}
	r.Table = routing.TableID(table)
	if r.Expires, err = o.needed("lease_expires"); err != nil || r.Version == 1 {
		return err
	}
	if r.Lifetime, err = o.needed("lifetime"); err != nil {
		return err
	}
	set, refused := o.flag("routing")
	if refused != nil {
		return asError(refused)
	}
	r.Routing = set
	return nil
}

func (o object) refused(r *Response) error {
	code, refused := o.text("code", MaxResponse)
	if refused != nil {
		return asError(refused)
	}
	if code == "" {
		return errors.New("the refusal has no code")
	}
	text, refused := o.text("error", MaxResponse)
	if refused != nil {
		return asError(refused)
	}
	r.Refused = &Error{Code: Code(code), Text: text}
	return nil
}

// needed returns a number that must be there.
func (o object) needed(key string) (uint32, error) {
	n, there, refused := o.number(key, math.MaxUint32, Malformed)
	switch {
	case refused != nil:
		return 0, asError(refused)
	case !there:
		return 0, fmt.Errorf("there is no member %q", key)
	}
	return uint32(n), nil //nolint:gosec // Bounded by MaxUint32.
}
