using System.Runtime.InteropServices;
using System.Text;

namespace Mustafar.Models.Tokenizer;

/// <summary>BPE over characters, with bytes for characters that the vocabulary lacks.</summary>
internal sealed class CharacterMerger
{
    private readonly Dictionary<Rune, int> _characters = [];
    private readonly Dictionary<int, Rune> _unlisted = [];
    private readonly int[] _byteIds;
    private readonly BytePairMerger _merger;
    private readonly UnknownToken _unknown;

    /// <summary>Makes a merger.</summary>
    /// <param name="tokens">Tokens of text: a text is merged from those that are a single character.</param>
    /// <param name="unlisted">Characters that are no token but can be merged into one, each with an otherwise unused id.</param>
    /// <param name="byteIds">The ids of all bytes; -1 for bytes without one.</param>
    /// <param name="merger">Merges ids of both kinds.</param>
    /// <param name="unknown">Stands for characters with a byte that has no id.</param>
    public CharacterMerger(
        IEnumerable<KeyValuePair<string, int>> tokens,
        IEnumerable<KeyValuePair<Rune, int>> unlisted,
        int[] byteIds,
        BytePairMerger merger,
        UnknownToken unknown)
    {
        foreach ((string token, int id) in tokens)
        {
            if (token.Length > 0 && Rune.TryGetRuneAt(token, 0, out Rune rune) && rune.Utf16SequenceLength == token.Length)
            {
                _characters[rune] = id;
            }
        }

        foreach ((Rune rune, int id) in unlisted)
        {
            _characters.Add(rune, id);
            _unlisted.Add(id, rune);
        }

        _byteIds = byteIds;
        _merger = merger;
        _unknown = unknown;
    }

    /// <summary>Adds the ids of a text.</summary>
    /// <param name="text">The text, without half surrogate pairs.</param>
    /// <param name="ids">Receives the ids.</param>
    /// <param name="cancellationToken">Cancels between merges.</param>
    public void Encode(ReadOnlySpan<char> text, List<int> ids, CancellationToken cancellationToken)
    {
        List<int> symbols = new(text.Length);
        UnknownToken.Run run = _unknown.Start(symbols);
        Span<byte> utf8 = stackalloc byte[4];
        foreach (Rune rune in text.EnumerateRunes())
        {
            if (_characters.TryGetValue(rune, out int id))
            {
                run.Add(id);
                continue;
            }

            ReadOnlySpan<byte> bytes = utf8[..rune.EncodeToUtf8(utf8)];
            if (HasIds(bytes))
            {
                foreach (byte value in bytes)
                {
                    run.AddByte(_byteIds[value]);
                }
            }
            else
            {
                run.AddUnknown();
            }
        }

        run.Finish();

        int start = ids.Count;
        _merger.Merge(CollectionsMarshal.AsSpan(symbols), ids, cancellationToken);
        if (_unlisted.Count > 0)
        {
            ReplaceUnlisted(ids, start);
        }
    }

    private bool HasIds(ReadOnlySpan<byte> bytes)
    {
        foreach (byte value in bytes)
        {
            if (_byteIds[value] < 0)
            {
                return false;
            }
        }

        return true;
    }

    private void ReplaceUnlisted(List<int> ids, int start)
    {
        List<int> merged = ids.GetRange(start, ids.Count - start);
        ids.RemoveRange(start, merged.Count);
        foreach (int id in merged)
        {
            if (_unlisted.TryGetValue(id, out Rune rune))
            {
                AddBytes(rune, ids);
            }
            else
            {
                ids.Add(id);
            }
        }
    }

    private void AddBytes(Rune rune, List<int> ids)
    {
        Span<byte> utf8 = stackalloc byte[4];
        foreach (byte value in utf8[..rune.EncodeToUtf8(utf8)])
        {
            ids.Add(_byteIds[value]);
        }
    }
}
