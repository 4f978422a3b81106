package cgroupbpf_test

import (
	"os"
	"testing"

	"multihomed/test/lab/boundtest"
)

func TestMain(m *testing.M) { os.Exit(boundtest.Main(m)) }
