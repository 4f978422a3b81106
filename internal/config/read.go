package config

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"multihomed/internal/lazy"
)

// A place is a table of the file: the whole of it, one that has a name, or an entry of a
// list of tables.
type place struct {
	table string
	// isEntry says that it is the entry with this index of the list.
	isEntry bool
	index   int
}

// full is a key of the table without the index, as [specs] and [positions] have it.
func (p place) full(key string) string {
	if p.table == "" {
		return key
	}
	return p.table + "." + key
}

// name is a key of the table for people, and without a key the table.
func (p place) name(key string) string {
	if p.isEntry {
		return entryKey(p.table, p.index, key)
	}
	if key == "" {
		return p.table
	}
	return p.full(key)
}

// line is where a key of the table is.
func (v *validator) line(p place, key string) int {
	if p.isEntry {
		return v.at.of(p.table, p.index, key)
	}
	return v.at.first(p.full(key))
}

// leaveOut reports that a key of a table cannot be used, and why.
func (v *validator) leaveOut(p place, key, name, message string) {
	v.fail(v.line(p, key), name, message)
	v.faulty[p.name("")] = true
}

// read puts the values of a table into its struct of [raw]. It names every key that does
// not exist and every value of another type, and leaves both out.
func (v *validator) read(into reflect.Value, table map[string]any, p place) {
	fields := map[string]reflect.Value{}
	for f, value := range into.Fields() {
		fields[f.Tag.Get("toml")] = value
	}
	for _, key := range slices.Sorted(maps.Keys(table)) {
		field, known := fields[key]
		if !known {
			v.leaveOut(p, key, p.name(shown(key)), v.unknown(p.full(key)))
			continue
		}
		if text, is := v.at.huge[occurrence{p.full(key), v.line(p, key)}]; is {
			want, _ := allowed(p.full(key))
			v.leaveOut(p, key, p.name(key), fmt.Sprintf("%s is not allowed; want %s", cut(text), want))
			continue
		}
		if message := v.value(field, table[key], p, key); message != "" {
			v.leaveOut(p, key, p.name(key), message)
		}
	}
}

// value puts one value into its field, or says why it does not fit.
func (v *validator) value(field reflect.Value, value any, p place, key string) (message string) {
	full := p.full(key)
	switch to := field.Addr().Interface().(type) {
	case **int64:
		return store(to, value, full)
	case **string:
		return store(to, value, full)
	case **bool:
		return store(to, value, full)
	case **float64:
		if n, is := value.(int64); is {
			value = float64(n)
		}
		return store(to, value, full)
	case **[]string:
		return v.texts(to, value, full)
	case *any:
		*to = value
		return ""
	}
	if field.Kind() == reflect.Struct {
		table, is := value.(map[string]any)
		if !is {
			return misfit(value, full)
		}
		v.read(field, table, place{table: full})
		return ""
	}
	list, is := value.([]any)
	if !is {
		return misfit(value, full)
	}
	field.Set(reflect.MakeSlice(field.Type(), len(list), len(list)))
	for i, element := range list {
		entry := place{table: full, isEntry: true, index: i}
		table, is := element.(map[string]any)
		if !is {
			v.leaveOut(entry, "", entry.name(""), describe(element)+" where a table belongs")
			continue
		}
		v.read(field.Index(i), table, entry)
	}
	return ""
}

// store sets a field to a value of its type.
func store[T any](to **T, value any, full string) (message string) {
	typed, is := value.(T)
	if !is {
		return misfit(value, full)
	}
	*to = &typed
	return ""
}

// texts sets a field to a list of strings.
func (v *validator) texts(to **[]string, value any, full string) (message string) {
	list, is := value.([]any)
	if !is {
		return misfit(value, full)
	}
	all := make([]string, 0, len(list))
	for _, element := range list {
		text, is := element.(string)
		if !is {
			return "in the list, " + misfit(element, full)
		}
		all = append(all, text)
	}
	*to = &all
	return ""
}

// misfit says that a value has a type that its key does not take, and how it is written
// if only the quotation marks are wrong.
func misfit(value any, full string) string {
	want, _ := allowed(full)
	message := describe(value) + " where " + want + " belongs"
	switch value := value.(type) {
	case string:
		_, err := strconv.ParseFloat(value, 64)
		isNumber := strings.HasPrefix(want, "a number") || strings.HasPrefix(want, "a whole number")
		if isNumber && err == nil || want == "true or false" && (value == "true" || value == "false") {
			message += "; write it without quotation marks"
		}
	case int64:
		switch {
		case strings.HasPrefix(want, "a list of names or numbers"):
			message += fmt.Sprintf(`; write it as "%d"`, value)
		case strings.HasPrefix(want, "a duration"):
			message += fmt.Sprintf(`; write it with a unit, such as "%ds" or "%dms"`, value, value)
		}
	}
	return message
}

// describe says of which type a value is, and what it is if that is short.
func describe(value any) string {
	switch value := value.(type) {
	case string:
		return "a string (" + quoted(value) + ")"
	case int64:
		return fmt.Sprintf("a whole number (%d)", value)
	case float64:
		return fmt.Sprintf("a number with a point (%v)", value)
	case bool:
		return fmt.Sprintf("a boolean (%t)", value)
	case map[string]any:
		return "a table"
	case []any:
		return "a list"
	default:
		return "a date or time"
	}
}

var bareKey = lazy.Regexp(`^[A-Za-z0-9_-]{1,64}$`)

// shown is a key as TOML writes it: in quotation marks if it needs them
// (https://toml.io/en/v1.0.0#keys).
func shown(key string) string {
	if bareKey().MatchString(key) {
		return key
	}
	return quoted(key)
}

// cut shows an absurdly long word only in part.
func cut(word string) string {
	if len(word) > maxSuggested {
		return word[:maxSuggested] + "..."
	}
	return word
}

// unknown says that there is no such key, and which one was probably meant. Beyond mostErrors
// it does not search, because nothing is printed.
func (v *validator) unknown(full string) string {
	if len(v.errs) == mostErrors {
		return ""
	}
	return "unknown key" + suggestion(full)
}

// keys names the unknown keys of a file whose values cannot be read.
func (v *validator) keys() {
	for _, key := range slices.Sorted(maps.Keys(v.at.lines)) {
		if isKey(key) {
			continue
		}
		name := key
		if strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r == 0x7f }) || len(key) > maxSuggested {
			name = quoted(key)
		}
		v.fail(v.at.lines[key], name, v.unknown(key))
	}
}

// broken names the rule of TOML that a file breaks.
func (v *validator) broken(err error) {
	found, is := errors.AsType[*toml.DecodeError](err)
	if !is {
		v.fail(0, "", err.Error())
		return
	}
	line, _ := found.Position()
	v.fail(line, strings.Join(found.Key(), "."), strings.TrimPrefix(found.Error(), "toml: "))
}
