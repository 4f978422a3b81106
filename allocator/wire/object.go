package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"unicode/utf8"
)

// An object is the members of a JSON object, as far as they could be read.
// Values are string, json.Number, bool, nil, or composite.
type object map[string]any

// composite stands for an array or an object: nothing here is one.
type composite struct{}

// parse reads one JSON object. What was read before a mistake is returned too.
//
// encoding/json by itself would take what two readers may understand in two
// ways: a key twice, keys in another case, bytes that are not UTF-8.
func parse(data []byte) (object, *Error) {
	members := object{}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	twice, ok := members.read(decoder)
	switch {
	case !utf8.Valid(data):
		return members, refuse(Malformed, "the datagram is not UTF-8; send one JSON object, in UTF-8")
	case !ok || !json.Valid(data):
		return members, refuse(Malformed, "the datagram is not one JSON object, with nothing after it")
	case twice != "":
		return members, refuse(Malformed, "member %s is there twice; send it once", quote(twice))
	}
	return members, nil
}

// read fills o. A member that comes twice keeps its first value.
func (o object) read(decoder *json.Decoder) (twice string, ok bool) {
	if token, err := decoder.Token(); err != nil || token != json.Delim('{') {
		return "", false
	}
	for decoder.More() {
		token, err := decoder.Token()
		if err != nil {
			return twice, false
		}
		key, isString := token.(string)
		if !isString {
			return twice, false
		}
		value, err := value(decoder)
		if err != nil {
			return twice, false
		}
		if _, known := o[key]; known {
			twice = key
			continue
		}
		o[key] = value
	}
	_, err := decoder.Token()
	return twice, err == nil
}

// value reads one value, and passes over what is inside.
func value(decoder *json.Decoder) (any, error) {
	depth := 0
	for {
		token, err := decoder.Token()
		if err != nil {
			return nil, err
		}
		delimiter, isDelimiter := token.(json.Delim)
		switch {
		case !isDelimiter && depth == 0:
			return token, nil
		case !isDelimiter:
		case delimiter == '{' || delimiter == '[':
			depth++
		default:
			if depth--; depth == 0 {
				return composite{}, nil
			}
		}
	}
}

// number returns a whole number up to maximum; a greater one is refused with
// code. What is not there is 0, and there is false.
func (o object) number(key string, maximum uint64, code Code) (n uint64, there bool, refused *Error) {
	value, there := o[key]
	if !there {
		return 0, false, nil
	}
	text, isNumber := value.(json.Number)
	if !isNumber {
		return 0, true, refuse(Malformed, "member %q is not a number", key)
	}
	n, err := strconv.ParseUint(string(text), 10, 64)
	switch {
	case errors.Is(err, strconv.ErrRange) || n > maximum:
		return maximum, true, refuse(code, "member %q is more than %d", key, maximum)
	case err != nil:
		return 0, true, refuse(Malformed, "member %q is %s; send a whole number that is not negative", key, text)
	}
	return n, true, nil
}

// text returns a string. A character that was escaped wrongly (half of a
// surrogate pair) is refused: it would be equal to every other such one.
func (o object) text(key string, longest int) (string, *Error) {
	value, there := o[key]
	if !there {
		return "", nil
	}
	text, isString := value.(string)
	switch {
	case !isString:
		return "", refuse(Malformed, "member %q is not a string", key)
	case strings.ContainsRune(text, utf8.RuneError):
		return "", refuse(Malformed, "member %q holds a character that is not Unicode", key)
	case len(text) > longest:
		return "", tooLong(key, text, longest)
	}
	return text, nil
}

func tooLong(key, text string, longest int) *Error {
	return refuse(TooLong, "member %q has %d bytes; at most %d can be kept", key, len(text), longest)
}

// flag returns a boolean; what is not there is false.
func (o object) flag(key string) (bool, *Error) {
	value, there := o[key]
	if !there {
		return false, nil
	}
	flag, isFlag := value.(bool)
	if !isFlag {
		return false, refuse(Malformed, "member %q is neither true nor false", key)
	}
	return flag, nil
}

// quote shows what a stranger sent: on one line, and not for ever.
func quote(text string) string {
	const longest = 48
	if len(text) > longest {
		text = cut(text, longest) + "..."
	}
	return strconv.QuoteToGraphic(text)
}

// cut shortens text to at most n bytes, between two characters.
func cut(text string, n int) string {
	if len(text) <= n {
		return text
	}
	for n > 0 && !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n]
}

// appendString appends text as JSON, in the form of the first server and client:
// they escape the solidus.
func appendString(out []byte, text string) []byte {
	const hex = "0123456789abcdef"
	out = append(out, '"')
	for i := range len(text) {
		switch c := text[i]; {
		case c == '"' || c == '\\' || c == '/':
			out = append(out, '\\', c)
		case c < ' ':
			out = append(out, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		default:
			out = append(out, c)
		}
	}
	return append(out, '"')
}

// A writer makes a JSON object.
type writer struct{ out []byte }

func (w *writer) key(key string) {
	if len(w.out) == 0 {
		w.out = append(w.out, '{')
	} else {
		w.out = append(w.out, ',')
	}
	w.out = append(appendString(w.out, key), ':')
}

func (w *writer) text(key, text string) {
	w.key(key)
	w.out = appendString(w.out, text)
}

func (w *writer) number(key string, n uint64) {
	w.key(key)
	w.out = strconv.AppendUint(w.out, n, 10)
}

// yes writes a flag that is set; one that is not set is left out.
func (w *writer) yes(key string, flag bool) {
	if flag {
		w.key(key)
		w.out = append(w.out, "true"...)
	}
}

func (w *writer) end() []byte { return append(w.out, '}') }
