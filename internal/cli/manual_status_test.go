package cli_test

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"multihomed/internal/cli"
	"multihomed/internal/doctor"
	"multihomed/internal/preview"
	"multihomed/internal/status/check"
)

// TestManualOfProblems wants each code in the manual, and no other: those of the checks, and
// those that the sources name.
func TestManualOfProblems(t *testing.T) {
	t.Parallel()
	var codes []string
	for _, c := range check.Codes() {
		codes = append(codes, string(c))
	}
	for _, c := range doctor.Codes() {
		codes = append(codes, string(c))
	}
	declared := regexp.MustCompile(`(?m)^\s*(?:const )?\w+ +(?:routing\.)?Code += +"([a-z-]+)"`)
	for _, pattern := range []string{"routing/*.go", "internal/status/*/*.go", "internal/doctor/*.go", "internal/config/*.go", "internal/daemon/*.go", "internal/binding/*.go", "internal/answering/*.go", "routing/answers/*.go", "internal/dbusapi/server/*.go"} {
		files, err := filepath.Glob(filepath.Join("..", "..", pattern))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %v", pattern, err)
		}
		for _, path := range files {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, found := range declared.FindAllSubmatch(text, -1) {
				codes = append(codes, string(found[1]))
			}
		}
	}
	slices.Sort(codes)
	codes = slices.Compact(codes)
	if len(codes) < 30 {
		t.Fatalf("the sources are not understood: %v", codes)
	}
	section := manual(t, "multihomectl.8").parts("Sh")["PROBLEMS"]
	differ(t, "codes of problems", codes, section.items("Cm"))
}

// TestManualOfTheJSON wants each field of a document in the manual and in the help.
func TestManualOfTheJSON(t *testing.T) {
	t.Parallel()
	section := string(manual(t, "multihomectl.8").parts("Sh")["JSON"])
	for command, document := range map[string]reflect.Type{"status": reflect.TypeFor[cli.Status](), "plan": reflect.TypeFor[preview.Document]()} {
		help, _, _ := run(t, command, "--help")
		for _, name := range fields(document) {
			word := regexp.MustCompile(`(^|[^a-z_])` + name + `([^a-z_]|$)`)
			if !word.MatchString(section) {
				t.Errorf("the manual of %s lacks %s", command, name)
			}
			if !word.MatchString(help) {
				t.Errorf("the help of %s lacks %s", command, name)
			}
		}
	}
}

// fields are the names in the JSON of a type and of all in it.
func fields(of reflect.Type) []string {
	for of.Kind() == reflect.Slice || of.Kind() == reflect.Pointer || of.Kind() == reflect.Map {
		of = of.Elem()
	}
	if of.Kind() != reflect.Struct || of == reflect.TypeFor[time.Time]() || strings.HasPrefix(of.PkgPath(), "net/") {
		return nil
	}
	var out []string
	for field := range of.Fields() {
		if name, _, _ := strings.Cut(field.Tag.Get("json"), ","); name != "" {
			out = append(out, name)
		}
		out = append(out, fields(field.Type)...)
	}
	return out
}
