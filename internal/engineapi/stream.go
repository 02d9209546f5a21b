package engineapi

// streamLine is one line of a pull's stream, in docker's shape. Kind and hint
// of an error travel inside errorDetail, where docker's clients ignore them.
type streamLine struct {
	Status      string        `json:"status,omitempty"`
	ID          string        `json:"id,omitempty"`
	Detail      *streamDetail `json:"progressDetail,omitempty"`
	Aux         *PullResult   `json:"aux,omitempty"`
	ErrorDetail *Error        `json:"errorDetail,omitempty"`
	Error       string        `json:"error,omitempty"`
}

// streamDetail counts bytes; {} when nothing is to be counted.
type streamDetail struct {
	Current int64 `json:"current,omitempty"`
	Total   int64 `json:"total,omitempty"`
}
