package cgroups_test

import (
	"path"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"multihomed/internal/cgroups"
)

func selector(tb testing.TB, text string) cgroups.Selector {
	tb.Helper()
	kind, name, _ := strings.Cut(text, " ")
	s, err := map[string]func(string) (cgroups.Selector, error){"unit": cgroups.Unit, "slice": cgroups.Slice, "cgroup": cgroups.Path}[kind](name)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func TestWhereCgroupsAre(t *testing.T) {
	t.Parallel()
	const alice = "user.slice/user-1000.slice/user@1000.service"
	for _, c := range []struct{ selector, is, isNot string }{
		{
			"unit x.service", "system.slice/x.service a.slice/a-b.slice/x.service x.service " + alice + "/app.slice/x.service " + alice + "/x.service",
			"system.slice/y.service a.slice/b.slice/x.service a-b.slice/x.service system.slice/y.service/x.service machine.slice/m.scope/system.slice/x.service " +
				"user.slice/user-1000.slice/user@1001.service/x.service user.slice/user-01.slice/user@01.service/x.service user.slice/user-a.slice/user@a.service/x.service",
		},
		{"unit a@b.service", "system.slice/system-a.slice/a@b.service", "system.slice/a@c.service"},
		{"unit a@.service", "system.slice/system-a.slice/a@b.service system.slice/a@c.service", "system.slice/a@.service system.slice/a@b.socket system.slice/aa@b.service"},
		{`unit a@b\x2dc.service`, `system.slice/system-a\x2dd.slice/a@b\x2dc.service`, ""},
		{"unit cpu.service", "system.slice/_cpu.service", "system.slice/__cpu.service"},
		{"unit user@1000.service", alice, alice + "/init.scope"},
		{"unit init.scope", "init.scope " + alice + "/init.scope", ""},
		{"slice system.slice", "system.slice", "system.slice/system-a.slice"},
		{"slice user-1000.slice", "user.slice/user-1000.slice", "user-1000.slice"},
		{"slice a-b-c.slice", "a.slice/a-b.slice/a-b-c.slice " + alice + "/a.slice/a-b.slice/a-b-c.slice", "a.slice/a-b-c.slice"},
		{"slice io.slice", "_io.slice", "io.slice"},
		{"cgroup /sys/fs/cgroup/a/b c", "a/b c", "a a/b"},
		{"cgroup /sys/fs/cgroup/unified/a/", "a", "unified/a"},
		{"cgroup /a.slice/x.service", "a.slice/x.service", "b/a.slice/x.service"},
		{"cgroup a", "a", ""},
	} {
		s := selector(t, c.selector)
		split := func(list string) []string {
			if strings.HasPrefix(c.selector, "cgroup") {
				return strings.SplitAfter(list, "\n") // It has a space.
			}
			return strings.Fields(list)
		}
		for _, place := range split(c.is) {
			if is, _ := s.At(place); !is {
				t.Errorf("%v is not at %s", s, place)
			}
			for above := path.Dir(place); ; above = path.Dir(above) {
				if _, holds := s.At(above); !holds {
					t.Errorf("%v at %s: nobody looks into %s", s, place, above)
				}
				if above == "." {
					break
				}
			}
		}
		for _, place := range split(c.isNot) {
			if is, _ := s.At(place); is {
				t.Errorf("%v is at %s", s, place)
			}
		}
	}
}

func TestOnlyDirectoriesThatMatterAreLookedInto(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ selector, place string }{
		{"unit x.service", "system.slice/x.service"},
		{"unit x.service", "system.slice/b.slice"},
		{"unit x.service", "machine.slice/m.scope"},
		{"slice a-b.slice", "b.slice"},
		{"slice a-b.slice", "a.slice/a-b.slice"},
		{"slice a-b.slice", "user.slice/user-1.slice/session-2.scope"},
		{"slice a-b.slice", "user.slice/user-x.slice"},
		{"cgroup a/b", "b"},
		{"cgroup a/b", "a/b"},
	} {
		if _, holds := selector(t, c.selector).At(c.place); holds {
			t.Errorf("%s is looked for in %s", c.selector, c.place)
		}
	}
	if is, holds := (cgroups.Selector{}).At("a"); is || holds {
		t.Error("nothing is somewhere")
	}
}

func TestHostileNamesAreRefused(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", 256)
	for kind, names := range map[string][]string{
		"unit": {
			"", "nginx", ".service", "@.service", "@a.service", "a/b.service", "../x.service", "x y.service", "x\x00.service", "x.service\n", "é.service", "x.slice", "x.timer", "x.target",
			long + ".service", "*.service",
		},
		"slice":  {"", "-.slice", ".slice", "a", "a.service", "-a.slice", "a-.slice", "a--b.slice", "a@b.slice", "a/b.slice", "..slice/..", long + ".slice"},
		"cgroup": {"", "/", "/sys/fs/cgroup", "/sys/fs/cgroup/", "/sys/fs/cgroup/unified", "a/../b", "..", "a//b", "a/./b", "a\x00b", "a\nb", long, strings.Repeat("a/", 4096)},
	} {
		for _, name := range names {
			_, err := map[string]func(string) (cgroups.Selector, error){"unit": cgroups.Unit, "slice": cgroups.Slice, "cgroup": cgroups.Path}[kind](name)
			if err == nil || !strings.Contains(err.Error(), "to fix: ") || strings.ContainsAny(err.Error(), "\x00\n") || len(err.Error()) > 1000 {
				t.Errorf("%s %q: %v", kind, name, err)
			}
		}
	}
}

// TestWhoeverLooksFinds: from the root, the ways to all that a selector selects are looked into.
func TestWhoeverLooksFinds(t *testing.T) {
	t.Parallel()
	selectors := rapid.SampledFrom([]string{
		"unit x.service", "unit x@.service", "unit user@1000.service", "slice a.slice", "slice a-b.slice", "slice user-1000.slice", "cgroup a.slice/x.service", "cgroup user.slice/q",
	})
	parts := rapid.SampledFrom([]string{
		"a.slice", "a-b.slice", "b.slice", "user.slice", "user-1000.slice", "user@1000.service", "user@7.service", "x.service", "x@1.service", "q", "_x.service", "system.slice",
	})
	rapid.Check(t, func(t *rapid.T) {
		place := strings.Join(rapid.SliceOfN(parts, 1, 6).Draw(t, "place"), "/")
		text := selectors.Draw(t, "selector")
		kind, name, _ := strings.Cut(text, " ")
		s, err := map[string]func(string) (cgroups.Selector, error){"unit": cgroups.Unit, "slice": cgroups.Slice, "cgroup": cgroups.Path}[kind](name)
		if err != nil {
			t.Fatal(err)
		}
		is, holds := s.At(place)
		if !is && !holds {
			return
		}
		for above := path.Dir(place); ; above = path.Dir(above) {
			if _, holds := s.At(above); !holds {
				t.Fatalf("%v at %s: nobody looks into %s", s, place, above)
			}
			if above == "." {
				break
			}
		}
	})
}
