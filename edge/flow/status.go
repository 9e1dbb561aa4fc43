package flow

import "strconv"

// Status says how a flow ended, or that it has not. The numbers have the
// meanings of Cloudflare Spectrum's event log.
type Status int

// The statuses. An operator filters the flow log by them, so a number never
// changes its meaning.
const (
	StatusOpen        Status = 0   // still running
	StatusClosed      Status = 200 // ended in order, or idle for its whole idle timeout
	StatusDenied      Status = 403 // refused by policy
	StatusOriginGone  Status = 449 // the private side aborted
	StatusCut         Status = 498 // the edge ended it: an operator's word, or its own stop
	StatusClientGone  Status = 499 // the client aborted
	StatusRefused     Status = 520 // the endpoint refused the connection
	StatusUnreachable Status = 521 // the endpoint is unreachable, or the connector's guard denied it
	StatusTimeout     Status = 522 // the endpoint did not answer in time
	StatusNoRoute     Status = 523 // no live connector serves the endpoint
	StatusNoEndpoint  Status = 530 // the pools have nothing to pick
	StatusInternal    Status = 999 // a failure that none of the others names
)

// String returns the status in words, as tables show it.
func (s Status) String() string {
	switch s {
	case StatusOpen:
		return "open"
	case StatusClosed:
		return "closed"
	case StatusDenied:
		return "denied"
	case StatusOriginGone:
		return "origin gone"
	case StatusCut:
		return "cut"
	case StatusClientGone:
		return "client gone"
	case StatusRefused:
		return "refused"
	case StatusUnreachable:
		return "unreachable"
	case StatusTimeout:
		return "timed out"
	case StatusNoRoute:
		return "no route"
	case StatusNoEndpoint:
		return "no endpoint"
	case StatusInternal:
		return "internal failure"
	}
	return strconv.Itoa(int(s))
}
