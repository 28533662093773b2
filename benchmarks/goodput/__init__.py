"""What share of all requests is answered rightly and in time, by way of deciding how long to think."""
