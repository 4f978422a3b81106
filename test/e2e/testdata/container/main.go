// Command container is the only program of the containers that tests of engines start. Without
// arguments it answers on TCP and UDP as servers of the lab do; "container ask NETWORK ADDRESS" prints
// what such a server answers.
package main

import (
	"fmt"
	"net"
	"os"
	"time"
)

const port = ":7007"

func main() {
	if len(os.Args) == 4 && os.Args[1] == "ask" {
		if err := ask(os.Args[2], os.Args[3]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	if err := serve(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func ask(network, address string) error {
	c, err := net.DialTimeout(network, net.JoinHostPort(address, port[1:]), 2*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("who?\n")); err != nil {
		return err
	}
	answer := make([]byte, 512)
	n, err := c.Read(answer)
	fmt.Print(string(answer[:n]))
	return err
}

func serve() error {
	udp, err := net.ListenPacket("udp", port)
	if err != nil {
		return err
	}
	go func() {
		question := make([]byte, 512)
		for {
			if _, from, err := udp.ReadFrom(question); err == nil {
				_, _ = udp.WriteTo(answer(from), from)
			}
		}
	}()
	tcp, err := net.Listen("tcp", port)
	if err != nil {
		return err
	}
	for {
		c, err := tcp.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			question := make([]byte, 512)
			for {
				if _, err := c.Read(question); err != nil {
					return
				}
				if _, err := c.Write(answer(c.RemoteAddr())); err != nil {
					return
				}
			}
		}()
	}
}

func answer(from net.Addr) []byte {
	return fmt.Appendf(nil, "{\"ISP\":\"container\",\"Peer\":%q}\n", from)
}
