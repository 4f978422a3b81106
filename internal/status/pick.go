package status

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// Wanted says which links of a status are wanted.
type Wanted struct {
	// Rules are texts of objects, Interfaces names, both escaped as in the status.
	Rules, Interfaces []string
	// All says that all links are.
	All bool
}

// Pick reads a status with only those links that have one of the wanted objects or names. It costs
// little more than finding them: a host may have a thousand links.
func Pick(data []byte, w Wanted) (*Status, error) {
	before, rest, has := bytes.Cut(data, []byte(`"links":[`))
	links, after, ends := bytes.Cut(rest, []byte(`],"shared":[`))
	if w.All || !has || !ends {
		return Decode(data, true)
	}
	rules, err := encodedSet(w.Rules)
	if err != nil {
		return nil, err
	}
	names, err := encodedSet(w.Interfaces)
	if err != nil {
		return nil, err
	}
	out := append(bytes.Clone(before), `"links":[`...)
	// A quotation mark within a string is escaped: this is where a link begins.
	begins := []byte(`,{"interface":"`)
	for isFirst := true; len(links) > 0; {
		link := links
		if end := bytes.Index(links[1:], begins); end >= 0 {
			link, links = links[:end+1], links[end+2:]
		} else {
			links = nil
		}
		if !isWanted(link, rules, names) {
			continue
		}
		if !isFirst {
			out = append(out, ',')
		}
		isFirst = false
		out = append(out, link...)
	}
	out = append(append(out, `],"shared":[`...), after...)
	var s Status
	if err := json.Unmarshal(out, &s); err != nil {
		return nil, err
	}
	return &s, nil
}

// encodedSet has texts as they stand between quotation marks in JSON.
func encodedSet(texts []string) (map[string]struct{}, error) {
	out := make(map[string]struct{}, len(texts))
	for _, text := range texts {
		encoded, err := json.Marshal(text)
		if err != nil {
			return nil, fmt.Errorf("encoding what is wanted: %w", err)
		}
		out[string(encoded[1:len(encoded)-1])] = struct{}{}
	}
	return out, nil
}

// isWanted looks for the names and the texts of a link.
func isWanted(link []byte, rules, names map[string]struct{}) bool {
	value := func(from []byte) []byte {
		for i := 0; i < len(from); i++ {
			switch from[i] {
			case '\\':
				i++
			case '"':
				return from[:i]
			}
		}
		return nil
	}
	if name, is := bytes.CutPrefix(link, []byte(`{"interface":"`)); is {
		if _, wanted := names[string(value(name))]; wanted {
			return true
		}
	}
	field := []byte(`"text":"`)
	for {
		at := bytes.Index(link, field)
		if at < 0 {
			return false
		}
		link = link[at+len(field):]
		if _, wanted := rules[string(value(link))]; wanted {
			return true
		}
	}
}
