using System.Globalization;
using System.Text;
using System.Text.Json.Nodes;
using Google.Protobuf;

namespace Mustafar.Tests.Llama;

/// <summary>
/// A small vocabulary in SentencePiece's manner, learned from a text: the files that describe it, and its ids by the plain rule.
/// </summary>
internal sealed class TinySentencePiece
{
    public const int Beginning = 1;
    private const int FirstByte = 3;

    private readonly List<string> _pieces = ["<unk>", "<s>", "</s>"];
    private readonly List<string> _learned = [];
    private readonly Dictionary<string, int> _ids;

    public TinySentencePiece(string text, int merges)
    {
        _pieces.AddRange(Enumerable.Range(0, 256).Select(value => string.Create(CultureInfo.InvariantCulture, $"<0x{value:X2}>")));
        List<List<string>> words = [.. text.Split(' ').Select(word => Characters('▁' + word))];
        List<string> characters = [.. words.SelectMany(word => word).Distinct().Order(StringComparer.Ordinal)];
        while (_learned.Count < merges)
        {
            (string Left, string Right) best = words.SelectMany(word => word.Zip(word.Skip(1)))
                .GroupBy(pair => pair)
                .OrderByDescending(group => group.Count()).ThenBy(group => group.Key.First + ' ' + group.Key.Second, StringComparer.Ordinal)
                .First().Key;
            if (!_learned.Contains(best.Left + best.Right))
            {
                _learned.Add(best.Left + best.Right);
            }

            words = [.. words.Select(word => Merged(word, best))];
        }

        // As in SentencePiece's files the pieces that were learned come first, in the order of their scores.
        _pieces.AddRange(_learned);
        _pieces.AddRange(characters);
        _ids = _pieces.Select((piece, id) => (piece, id)).ToDictionary(item => item.piece, item => item.id);
    }

    public int Count => _pieces.Count;

    public int IdOf(string piece) => _ids[piece];

    /// <summary>The ids of a text whose spaces are replaced: the best piece that two neighbours make, leftmost, until they make none.</summary>
    public List<int> Encode(string spaced)
    {
        List<string> symbols = Characters(spaced);
        while (true)
        {
            int best = int.MaxValue;
            int at = 0;
            for (int i = 0; i + 1 < symbols.Count; i++)
            {
                int rank = _learned.IndexOf(symbols[i] + symbols[i + 1]);
                if (rank >= 0 && rank < best)
                {
                    (best, at) = (rank, i);
                }
            }

            if (best == int.MaxValue)
            {
                return [.. symbols.SelectMany(Ids)];
            }

            symbols[at] += symbols[at + 1];
            symbols.RemoveAt(at + 1);
        }
    }

    public JsonObject ToJson(JsonNode? normalizer, JsonNode? preTokenizer, bool strips = true)
    {
        JsonObject vocabulary = [];
        foreach ((string piece, int id) in _ids)
        {
            vocabulary[piece] = id;
        }

        JsonArray decoders = JsonNode.Parse("""
            [{ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }, { "type": "ByteFallback" }, { "type": "Fuse" }]
            """)!.AsArray();
        if (strips)
        {
            decoders.Add(JsonNode.Parse("""{ "type": "Strip", "content": " ", "start": 1, "stop": 0 }"""));
        }

        return new JsonObject
        {
            ["added_tokens"] = new JsonArray([.. _pieces.Take(FirstByte).Select((piece, id) => new JsonObject
            {
                ["id"] = id, ["content"] = piece, ["single_word"] = false, ["lstrip"] = false, ["rstrip"] = false, ["normalized"] = false,
                ["special"] = true,
            })]),
            ["normalizer"] = normalizer,
            ["pre_tokenizer"] = preTokenizer,
            ["post_processor"] = JsonNode.Parse("""
                { "type": "TemplateProcessing", "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
                  "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
                  "special_tokens": { "<s>": { "id": "<s>", "ids": [1], "tokens": ["<s>"] } } }
                """),
            ["decoder"] = new JsonObject { ["type"] = "Sequence", ["decoders"] = decoders },
            ["model"] = new JsonObject
            {
                ["type"] = "BPE", ["dropout"] = null, ["unk_token"] = "<unk>", ["fuse_unk"] = true, ["byte_fallback"] = true,
                ["vocab"] = vocabulary,
                ["merges"] = new JsonArray([.. _learned.SelectMany(Parts).Select(merge => (JsonNode)merge)]),
            },
        };
    }

    /// <summary>The content of a tokenizer.model. A later piece has a lower score.</summary>
    /// <param name="modelType">1 is unigram, 2 is BPE.</param>
    /// <param name="typeOfLast">Type of the last piece: 1 is normal, 4 user-defined.</param>
    /// <param name="normalizer">Name of the normalizer.</param>
    /// <param name="removeExtraSpaces">Whether the normalizer removes them.</param>
    /// <param name="byteFallback">Whether bytes stand for characters that have no piece.</param>
    public byte[] ToModel(
        int modelType = 2, int typeOfLast = 1, string normalizer = "identity", bool removeExtraSpaces = false, bool byteFallback = true)
    {
        using MemoryStream stream = new();
        using CodedOutputStream output = new(stream);
        for (int id = 0; id < _pieces.Count; id++)
        {
            int type = id == 0 ? 2 : id < FirstByte ? 3 : id < FirstByte + 256 ? 6 : id == _pieces.Count - 1 ? typeOfLast : 1;
            float score = type == 1 ? FirstByte + 256 - id : 0;
            string piece = _pieces[id];
            Nested(output, 1, part =>
            {
                part.WriteTag(1, WireFormat.WireType.LengthDelimited);
                part.WriteString(piece);
                part.WriteTag(2, WireFormat.WireType.Fixed32);
                part.WriteFloat(score);
                part.WriteTag(3, WireFormat.WireType.Varint);
                part.WriteEnum(type);
            });
        }

        Nested(output, 2, part =>
        {
            part.WriteTag(3, WireFormat.WireType.Varint);
            part.WriteEnum(modelType);
            part.WriteTag(35, WireFormat.WireType.Varint);
            part.WriteBool(byteFallback);
        });
        Nested(output, 3, part =>
        {
            part.WriteTag(1, WireFormat.WireType.LengthDelimited);
            part.WriteString(normalizer);
            part.WriteTag(4, WireFormat.WireType.Varint);
            part.WriteBool(removeExtraSpaces);
        });
        output.Flush();
        return stream.ToArray();
    }

    // All pairs that make a piece, as conversions to tokenizer.json list them.
    private IEnumerable<string> Parts(string piece) => Enumerable.Range(1, piece.Length - 1)
        .Select(length => (Left: piece[..length], Right: piece[length..]))
        .Where(pair => _ids.ContainsKey(pair.Left) && _ids.ContainsKey(pair.Right))
        .OrderBy(pair => _ids[pair.Left]).ThenBy(pair => _ids[pair.Right])
        .Select(pair => $"{pair.Left} {pair.Right}");

    private static void Nested(CodedOutputStream output, int field, Action<CodedOutputStream> write)
    {
        using MemoryStream stream = new();
        using CodedOutputStream part = new(stream);
        write(part);
        part.Flush();
        output.WriteTag(field, WireFormat.WireType.LengthDelimited);
        output.WriteBytes(ByteString.CopyFrom(stream.ToArray()));
    }

    private static List<string> Characters(string text) => [.. text.EnumerateRunes().Select(rune => rune.ToString())];

    private static List<string> Merged(List<string> word, (string Left, string Right) pair)
    {
        List<string> merged = [];
        foreach (string symbol in word)
        {
            if (symbol == pair.Right && merged.Count > 0 && merged[^1] == pair.Left)
            {
                merged[^1] += symbol;
            }
            else
            {
                merged.Add(symbol);
            }
        }

        return merged;
    }

    private IEnumerable<int> Ids(string symbol) => _ids.TryGetValue(symbol, out int id)
        ? [id]
        : Encoding.UTF8.GetBytes(symbol).Select(value => FirstByte + value);
}
