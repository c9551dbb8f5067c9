using static TorchSharp.torch;

namespace Mustafar.Tests.Oracle;

/// <summary>
/// What a compressed cache must be, as lists of rows: tokens that the rule compresses are replaced by their pruned rows, and attention
/// is computed in double precision. Its tensors live in the dispose scope of whoever calls.
/// </summary>
internal sealed class ReferenceCache(int batch, MustafarOptions options, int headDim)
{
    private readonly Tensor?[] _keys = new Tensor?[batch];
    private readonly Tensor?[] _values = new Tensor?[batch];
    private readonly (ReferenceSelection Keys, ReferenceSelection Values)[] _selections =
        [.. Enumerable.Range(0, batch).Select(_ => (KeysOf(options, headDim), ValuesOf(options, headDim)))];

    private readonly float[]?[] _keyScales = new float[]?[batch]; // of those that have compressed tokens
    private readonly int[] _compressed = new int[batch];
    private readonly int[] _released = new int[batch]; // whole groups that a sliding window gave back

    internal int Batch => batch;

    internal int Length(int b) => (int)(_keys[b]?.shape[1] ?? 0);

    internal int[] Lengths => [.. Enumerable.Range(0, batch).Select(Length)];

    /// <summary>Of the tokens after the sinks.</summary>
    internal int[] Compressed => [.. _compressed];

    internal static int Rule(int length, MustafarOptions options) =>
        Math.Max(0, (int)Math.Floor((length - options.SinkTokens - options.LocalWindow) / (double)options.GroupSize)) * options.GroupSize;

    internal void Append(Tensor keys, Tensor values, int[] counts)
    {
        for (int b = 0; b < batch; b++)
        {
            Gather(b, null, keys, values, counts[b]);
            Add(b, keys, values, counts[b]);
            Compress(b, Rule(Length(b), options));
            Release(b);
        }
    }

    internal Tensor Attend(Tensor query, double scale) => stack(Enumerable.Range(0, batch).Select(b => Attend(b, query[b], scale)).ToArray());

    /// <summary>Before the new tokens attend, what the first of them makes due is compressed; the rest after.</summary>
    internal Tensor Forward(Tensor query, Tensor keys, Tensor values, double scale, int[] counts)
    {
        Tensor output = zeros(query.shape, dtype: ScalarType.Float64);
        bool prompt = Lengths.All(length => length == 0) && keys.shape[2] > 1;
        for (int b = 0; b < batch; b++)
        {
            // A single token is appended first; of several, none is there yet when the cache makes room for the first.
            int past = Length(b);
            Gather(b, query, keys, values, counts[b]);
            bool single = keys.shape[2] == 1;
            Weigh(b, query, keys, Math.Min(1, counts[b]), scale);
            Compress(b, prompt ? 0 : Math.Min(Rule(past + (single ? counts[b] : 1), options), Others(past) / options.GroupSize * options.GroupSize));
            Weigh(b, query, keys, counts[b], scale);
            Add(b, keys, values, counts[b]);
            if (single)
            {
                Compress(b, Rule(Length(b), options));
            }

            if (counts[b] > 0)
            {
                output[b].narrow(1, 0, counts[b]).copy_(Attend(b, query[b].narrow(1, 0, counts[b]), scale));
            }

            Compress(b, Rule(Length(b), options));
            Release(b);
            _selections[b].Values.Keep(query[b].narrow(1, 0, counts[b]));
        }

        return output;
    }

    /// <summary>Whether queries at the last tokens would see what fell out of the sliding window.</summary>
    internal bool RefusesToAttend(int queries) =>
        Enumerable.Range(0, batch).Any(b => FirstVisible(Math.Max(0, Others(Length(b)) - queries)) < _released[b]);

    /// <summary>Whether the tokens that follow would see what fell out of the sliding window.</summary>
    internal bool RefusesToTruncate(int[] lengths) =>
        Enumerable.Range(0, batch).Any(b => Others(lengths[b]) > 0 && FirstVisible(Others(lengths[b])) < _released[b]);

    internal void Truncate(int[] lengths)
    {
        for (int b = 0; b < batch; b++)
        {
            _selections[b].Values.Shorten(Length(b) - lengths[b]);
            _keys[b] = _keys[b]?.narrow(1, 0, lengths[b]);
            _values[b] = _values[b]?.narrow(1, 0, lengths[b]);
            _released[b] = Others(lengths[b]) == 0 ? 0 : _released[b];
            _compressed[b] = Math.Min(_compressed[b], Math.Max(_released[b], Rule(lengths[b], options)));
        }
    }

    internal ReferenceCache Fork(int[] parents)
    {
        ReferenceCache fork = new(parents.Length, options, headDim);
        for (int b = 0; b < parents.Length; b++)
        {
            fork._keys[b] = _keys[parents[b]];
            fork._values[b] = _values[parents[b]];
            fork._keyScales[b] = _keyScales[parents[b]];
            fork._selections[b] = (_selections[parents[b]].Keys.Copy(), _selections[parents[b]].Values.Copy());
            fork._compressed[b] = _compressed[parents[b]];
            fork._released[b] = _released[parents[b]];
        }

        return fork;
    }

    private static ReferenceSelection KeysOf(MustafarOptions options, int headDim) => new(
        options.KeySelection, options.KeysKept(headDim), options.BalancedKeys ? SparsityPattern.BalancedKeys : SparsityPattern.Unstructured);

    private static ReferenceSelection ValuesOf(MustafarOptions options, int headDim) => new(
        options.ValueSelection, options.ValuesKept(headDim), options.BalancedValues ? SparsityPattern.BalancedValues : SparsityPattern.Unstructured);

    private void Gather(int b, Tensor? query, Tensor keys, Tensor values, int count)
    {
        if (_compressed[b] == 0)
        {
            bool isFirst = Others(Length(b)) == 0;
            _selections[b].Keys.Add(query?[b].narrow(1, 0, count), keys[b].narrow(1, 0, count), isFirst);
            _selections[b].Values.Add(null, values[b].narrow(1, 0, count), isFirst);
        }
    }

    // With the first of a step's new tokens, which are not added yet.
    private void Weigh(int b, Tensor query, Tensor keys, int count, double scale)
    {
        if (_selections[b].Values.WeighsTokens)
        {
            Tensor added = keys[b].narrow(1, 0, count);
            _selections[b].Values.Weigh(
                query[b].narrow(1, 0, count), _keys[b] is Tensor past ? cat([past, added], 1) : added, scale, options.SlidingWindow, options.SinkTokens);
        }
    }

    private int Others(int length) => Math.Max(0, length - options.SinkTokens);

    // As sinks stay, positions and tokens are counted without them here.
    private int FirstVisible(int position) => options.SlidingWindow is int window ? Math.Max(0, position + 1 - window) : 0;

    // A sequence may go back by a group without missing what was given back.
    private void Release(int b)
    {
        int unseen = Math.Min(_compressed[b], FirstVisible(Math.Max(0, Others(Length(b)) - options.GroupSize)));
        _released[b] = Math.Max(_released[b], unseen / options.GroupSize * options.GroupSize);
    }

    private Tensor Attend(int b, Tensor query, double scale) =>
        Length(b) == 0
            ? zeros(query.shape, dtype: ScalarType.Float64)
            : ReferenceAttention.Attend(query, _keys[b]!, _values[b]!, scale, options.SlidingWindow, options.SinkTokens);

    private void Add(int b, Tensor keys, Tensor values, int count)
    {
        Tensor k = keys[b].narrow(1, 0, count).clone();
        Tensor v = values[b].narrow(1, 0, count).clone();
        _keys[b] = _keys[b] is Tensor oldKeys ? cat([oldKeys, k], 1) : k;
        _values[b] = _values[b] is Tensor oldValues ? cat([oldValues, v], 1) : v;
    }

    private void Compress(int b, int until)
    {
        int from = _compressed[b];
        if (until <= from)
        {
            return;
        }

        if (from == 0)
        {
            // Of whatever is compressed first; kept as long as any of it is.
            _keyScales[b] = options.KeyChannelScales ? ReferenceIntegers.ChannelScales(_keys[b]!.narrow(1, options.SinkTokens, until)) : null;
        }

        _keys[b] = Stored(_keys[b]!, _selections[b].Keys, options.KeyBits, _keyScales[b], options.KeyRotation);
        _values[b] = Stored(_values[b]!, _selections[b].Values, options.ValueBits, null, rotated: false);
        _compressed[b] = until;

        Tensor Stored(Tensor rows, ReferenceSelection selection, int bits, float[]? scales, bool rotated)
        {
            Tensor copy = rows.clone(), part = rows.narrow(1, options.SinkTokens + from, until - from);
            Tensor stored = selection.Rewritten(part, from) ?? ReferenceIntegers.Stored(part, selection.Mask(part, from, options.SinkTokens), bits, scales, rotated);
            copy.narrow(1, options.SinkTokens + from, until - from).copy_(stored);
            return copy;
        }
    }
}
