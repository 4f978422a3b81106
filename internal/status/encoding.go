package status

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// Encode returns a status in JSON, with a line feed at its end. Known returns the JSON of a
// link that is encoded already, nil for others; its result is not changed.
func Encode(s Status, known func(Link) []byte) ([]byte, error) {
	links := s.Links
	s.Links = []Link{}
	frame, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encoding the status: %w", err)
	}
	// A quotation mark within a string is escaped: this is the field.
	before, after, _ := bytes.Cut(frame, []byte(`"links":[]`))
	size := len(frame)
	for _, l := range links {
		size += len(known(l)) + 1
	}
	out := bytes.NewBuffer(make([]byte, 0, size+1))
	out.Write(before)
	out.WriteString(`"links":[`)
	for i, l := range links {
		if i > 0 {
			out.WriteByte(',')
		}
		if text := known(l); text != nil {
			out.Write(text)
			continue
		}
		text, err := json.Marshal(l)
		if err != nil {
			return nil, fmt.Errorf("encoding the status of %s: %w", l.Interface, err)
		}
		out.Write(text)
	}
	out.WriteByte(']')
	out.Write(after)
	out.WriteByte('\n')
	return out.Bytes(), nil
}

// Decode reads a status. Unless it is to be whole, links on which everything is in force
// come without their objects, which are most of it.
func Decode(data []byte, whole bool) (*Status, error) {
	if !whole {
		data = withoutObjects(data)
	}
	var s Status
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, err
	}
	return &s, nil
}

// withoutObjects leaves out the objects of links on which all are in force. It does not
// understand JSON: it looks for what [Encode] writes, and where it finds something else
// it leaves that as it is.
func withoutObjects(data []byte) []byte {
	field := []byte(`"objects":[`)
	out := make([]byte, 0, len(data)/4)
	for {
		at := bytes.Index(data, field)
		if at < 0 {
			return append(out, data...)
		}
		at += len(field)
		out, data = append(out, data[:at]...), data[at:]
		if n := objects(data); n > 0 {
			data = data[n:]
		}
	}
}

// objects returns the length of a list of objects that are all in force, 0 if it is none.
func objects(data []byte) int {
	state, inForce := []byte(`"state":"`), []byte(InForce+`"`)
	n := 0
	for n < len(data) && data[n] == '{' {
		// A brace within a string ends nothing.
		quoted := false
		at := n
		for ; at < len(data) && (quoted || data[at] != '}'); at++ {
			switch data[at] {
			case '\\':
				at++
			case '"':
				quoted = !quoted
			}
		}
		if at >= len(data)-1 {
			return 0
		}
		object := data[n:at]
		_, value, has := bytes.Cut(object, state)
		if !has || !bytes.HasPrefix(value, inForce) {
			return 0
		}
		switch data[at+1] {
		case ',':
			n = at + 2
		case ']':
			return at + 1
		default:
			return 0
		}
	}
	return 0
}
