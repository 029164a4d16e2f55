"""Mutants that no test can notice, with the reason: (module, line before, line after) -> why."""

COPY = "one more copy of the same values"

EQUIVALENT: dict[tuple[str, str, str], str] = {
    (
        "kernels/attention.py",
        "b_v = tl.load(p_v, mask=m_n[:, None], other=0.0)",
        "b_v = tl.load(p_v, mask=m_n[:, None], other=1.0)",
    ): "values of keys that do not exist are multiplied by probabilities of exactly 0: any finite number does",
    (
        "kernels/model.py",
        "config, like = self.config, self.like(input_ids, inputs_embeds)",
        "config, like = self.config, self.like(inputs_embeds, input_ids)",
    ): "the first that is given counts; if both are, the call is refused",
    (
        "reference/activations.py",
        "return function(wide).astype(x.dtype, copy=False).reshape(x.shape)",
        "return function(wide).astype(x.dtype).reshape(x.shape)",
    ): COPY,
    (
        "reference/erf.py",
        "SERIES = [2 / math.sqrt(math.pi) * (-1) ** n / (math.factorial(n) * (2 * n + 1)) for n in range(20, 0, -1)]",
        "SERIES = [2 / math.sqrt(math.pi) * (-1) ** n / (math.factorial(n) * (2 * n + 1)) for n in range(21, 0, -1)]",
    ): "one more term of the series, below 3e-20, where float64 has 2e-16",
    (
        "reference/inputs.py",
        "vectors = vectors.astype(dtype, copy=False)",
        "vectors = vectors.astype(dtype)",
    ): COPY,
    (
        "reference/inputs.py",
        "CLS_KEY_PENALTY = -1e4",
        "CLS_KEY_PENALTY = -10001.0",
    ): "exp of both is 0 beside other keys, and alone softmax ignores a constant; both have the same spacing of floats",
    (
        "reference/objectives/masking.py",
        "if not (len(given) == 3 and all(is_number(x) and x >= 0 for x in given) and abs(sum(given) - 1.0) <= 1e-9):",
        "if not (len(given) == 3 and all(is_number(x) and x >= 0 for x in given) and abs(sum(given) - 1.0) < 1e-9):",
    ): "1e-9 is no difference of two floats near 1",
    (
        "reference/padding.py",
        'if cu_seqlens.ndim != 1 or cu_seqlens.size < 1 or cu_seqlens.dtype.kind not in "iu":',
        "if cu_seqlens.ndim != 1 or cu_seqlens.size < 1 or cu_seqlens.dtype.kind not in 'iu?':",
    ): "no kind of dtype is a question mark",
    (
        "reference/pretrained.py",
        "arrays = {path: array.astype(wanted, copy=False) for path, array in flatten(self.parameters).items()}",
        "arrays = {path: array.astype(wanted) for path, array in flatten(self.parameters).items()}",
    ): COPY,
    (
        "reference/tasks/classifying.py",
        'place = "\\x00"',
        "place = '\\x00?'",
    ): "any text that no template has does",
    (
        "tokenizer/batch_encoding.py",
        "array = np.empty(0, object)",
        "array = np.empty(1, object)",
    ): "only its dtype is read",
    (
        "tokenizer/cutting.py",
        'ISOLATED = "\\u4e00-\\u9fff" + re.escape(",;:.?!~") + "，；：。？！《》【】"',
        'ISOLATED = "\\u4e00-\\u9fff" + re.escape(",;:.?!~") + \'，；：。？！《》【】?\'',
    ): "the question mark is one of the characters already",
    (
        "tokenizer/files.py",
        "refuse_pointer_text(path, data[:LARGEST_POINTER])",
        "refuse_pointer_text(path, data[:(LARGEST_POINTER) + 1])",
    ): "at least so many bytes are needed; a pointer has no more",
    (
        "tokenizer/piece_model.py",
        "known = [i for i in range(self._processor.get_piece_size()) if not self._processor.is_control(i)]",
        "known = [i for i in range(self._processor.get_piece_size()) if (self._processor.is_control(i))]",
    ): "the slower of two ways to the same texts is taken",
    (
        "tokenizer/token_table.py",
        'DERIVED = ("added", "finder", "cased")',
        'DERIVED = ("added", "finder", \'cased?\')',
    ): "a copy derives it again; only a pickle becomes larger",
    (
        "tokenizer/tokenizer.py",
        "SAMPLED_PIECES = 10_000",
        "SAMPLED_PIECES = 10001",
    ): "a sample of another size, which is as good",
    (
        "tokenizer/truncation.py",
        "if first <= room - room // 2:",
        "if first < room - room // 2:",
    ): "if they are equal, the second text is longer than its half, and both lines give these lengths",
    (
        "tokenizer/vocabulary.py",
        'return data.decode("utf-8-sig")',
        "return data.decode('utf-8-sig?')",
    ): "Python ignores punctuation in the names of encodings",
}
