"""Tables, sentences and pictures that the pages of this repository show, made from the result files of benches."""
