package explain

import (
	"slices"
	"strconv"
	"strings"
)

// dscps are the names of RFC 2474, RFC 2597, RFC 3246, RFC 5865 and RFC 8622.
var dscps = map[string]uint8{ //nolint:gochecknoglobals // a constant in all but name
	"cs0": 0, "cs1": 8, "cs2": 16, "cs3": 24, "cs4": 32, "cs5": 40, "cs6": 48, "cs7": 56,
	"af11": 10, "af12": 12, "af13": 14, "af21": 18, "af22": 20, "af23": 22, "af31": 26, "af32": 28, "af33": 30, "af41": 34, "af42": 36, "af43": 38,
	"ef": 46, "le": 1, "voice-admit": 44,
}

// DSCPNames are the names that [ParseTOS] knows, sorted.
func DSCPNames() []string {
	out := make([]string, 0, len(dscps))
	for name := range dscps {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// ParseTOS reads the byte of the type of service, or the traffic class: a number, or the name of a DSCP.
func ParseTOS(text string) (uint8, bool) {
	if d, known := dscps[strings.ToLower(text)]; known {
		return d << 2, true
	}
	n, err := strconv.ParseUint(text, 0, 8)
	return uint8(n), err == nil
}
