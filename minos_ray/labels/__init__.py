"""Stage `label`: grades answers, labels steps by a function or by rollouts, and puts errors into right solutions."""
