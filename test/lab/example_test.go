package lab_test

import (
	"context"
	"fmt"
	"net/netip"

	"multihomed/test/lab"
)

// A program with one provider: what its main passes to lab.Main.
func Example() {
	run := func(ctx context.Context) error {
		host, err := lab.NewHost(ctx, lab.HostConfig{})
		if err != nil {
			return err
		}
		defer host.Close()
		cfg := lab.DefaultISP(0)
		cfg.Routes = []lab.Route{
			lab.DefaultVia(cfg.IPv4.Addr()),
			{Dst: netip.MustParsePrefix("10.8.0.0/16"), Via: cfg.IPv4.Addr()},
		}
		isp, err := host.NewISP(ctx, cfg)
		if err != nil {
			return err
		}
		capture, err := isp.Capture()
		if err != nil {
			return err
		}
		if err := host.AddProfile(ctx, "home", cfg.Link); err != nil {
			return err
		}
		if err := host.Up(ctx, "home"); err != nil {
			return err
		}
		src, err := host.WaitAddr(ctx, cfg.Link, lab.IPv4)
		if err != nil {
			return err
		}
		answer, err := lab.DialUDP(ctx, lab.From{Addr: src}, lab.InternetAddr4)
		if err != nil {
			return err
		}
		foreign, err := capture.Foreign(isp.IPv4(), isp.IPv6())
		if err != nil {
			return err
		}
		fmt.Println(answer.ISP, len(foreign)) // isp0 0
		return nil
	}
	_ = run
}
