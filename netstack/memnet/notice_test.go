package memnet

import "testing"

func TestWhenReadable(t *testing.T) {
	for _, c := range []struct {
		name  string
		cause func(far *Conn)
	}{
		{"bytes", func(far *Conn) { far.Write([]byte("x")) }},
		{"the end", func(far *Conn) { far.CloseWrite() }},
		{"a reset", func(far *Conn) { far.Abort() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			near, far := Pipe()
			defer near.Close()
			defer far.Close()
			never := near.WhenReadable(func() { t.Error("told after Stop") })
			never.Stop()
			told := make(chan struct{}, 1)
			notice := near.WhenReadable(func() { told <- struct{}{} })
			defer notice.Stop()
			c.cause(far)
			<-told
			again := near.WhenReadable(func() { told <- struct{}{} })
			defer again.Stop()
			<-told
		})
	}
}
