using System.Text.Json;
using Mustafar.Models.Checkpoint;
using Mustafar.Storage;

namespace Mustafar.Models.Tokenizer;

/// <summary>
/// The tokens and the frame of a text in a tokenizer.json of BPE. What would change ids and isn't implemented is refused, never
/// ignored.
/// </summary>
internal sealed class TokenizerFile
{
    /// <summary>The file.</summary>
    public required string Path { get; init; }

    /// <summary>Ids of the model's tokens, as the file spells them.</summary>
    public required IReadOnlyDictionary<string, int> Vocabulary { get; init; }

    /// <summary>Pairs of tokens to merge, first to last, as "left right".</summary>
    public required IReadOnlyList<string> Merges { get; init; }

    /// <summary>Whether a piece that is a token as a whole is never merged from parts.</summary>
    public required bool IgnoreMerges { get; init; }

    /// <summary>Stands for what the vocabulary lacks.</summary>
    public required UnknownToken Unknown { get; init; }

    /// <summary>Tokens that are found in a text before anything else.</summary>
    public required IReadOnlyList<AddedToken> AddedTokens { get; init; }

    /// <summary>Ids before a text.</summary>
    public required IReadOnlyList<int> Prefix { get; init; }

    /// <summary>Ids after a text.</summary>
    public required IReadOnlyList<int> Suffix { get; init; }

    /// <summary>Reads a file. Its saved truncation and padding are ignored, as in transformers by default.</summary>
    /// <param name="path">A tokenizer.json.</param>
    /// <exception cref="FileNotFoundException">There is no such file.</exception>
    /// <exception cref="CheckpointException">A part is missing or not valid.</exception>
    /// <exception cref="UnsupportedModelException">A part is of a kind that is not implemented.</exception>
    public static TextTokenizer Load(string path)
    {
        using JsonDocument document = JsonFile.Open(path);
        JsonElement root = document.RootElement;
        JsonElement model = root.Require("model", JsonValueKind.Object, path);
        Dictionary<string, int> vocabulary = ReadModel(model, path);
        (List<int> prefix, List<int> suffix) = ReadPostProcessor(root, path);
        TokenizerFile file = new()
        {
            Path = path,
            Vocabulary = vocabulary,
            Merges = ReadMerges(model, vocabulary, path),
            IgnoreMerges = model.FindBoolean("ignore_merges", path) ?? false,
            Unknown = UnknownToken.Read(model, vocabulary, path),
            AddedTokens = ReadAddedTokens(root, path),
            Prefix = prefix,
            Suffix = suffix,
        };
        file.RequireOneTokenPerId();
        if (model.FindBoolean("byte_fallback", path) ?? false)
        {
            file.RequireCharacterTokens();
            return new ByteFallbackTokenizer(file, ByteFallbackRules.Read(root, path));
        }

        ByteLevelRules rules = ByteLevelRules.Read(root, path);
        file.RequireByteLevelTokens();
        return new ByteLevelTokenizer(file, rules);
    }

    /// <summary>The merger of tokens. If a pair is listed twice, the later rank counts, as in Hugging Face's library.</summary>
    public BytePairMerger MakeMerger()
    {
        Dictionary<(int, int), (int, int)> merges = new(Merges.Count);
        for (int rank = 0; rank < Merges.Count; rank++)
        {
            string[] parts = Merges[rank].Split(' ');
            merges[(Vocabulary[parts[0]], Vocabulary[parts[1]])] = (rank, Vocabulary[parts[0] + parts[1]]);
        }

        return new BytePairMerger(merges);
    }

    /// <summary>The kind of a part.</summary>
    public static string TypeOf(JsonElement part) => part.Find("type")?.ToString() ?? "of unknown type";

    /// <summary>The steps of a part: those of a Sequence, the part itself, or none if it is absent.</summary>
    /// <param name="root">The root object.</param>
    /// <param name="part">Its key.</param>
    /// <param name="list">Key of a Sequence's steps.</param>
    /// <param name="path">The file.</param>
    public static JsonElement[] Steps(JsonElement root, string part, string list, string path) => root.Find(part) is not JsonElement value
        ? []
        : TypeOf(value) == "Sequence" ? [.. value.Require(list, JsonValueKind.Array, path).EnumerateArray()] : [value];

    /// <summary>An added token as tokenizer files describe it.</summary>
    /// <exception cref="CheckpointException">It has no text.</exception>
    /// <exception cref="UnsupportedModelException">It absorbs neighbouring text, or is only found as a whole word.</exception>
    public static AddedToken ReadAddedToken(JsonElement token, int id, string path)
    {
        string? content = token.FindString("content", path);
        if (string.IsNullOrEmpty(content))
        {
            throw new CheckpointException($"expected a text as 'content' of each added token, but got {token.Quote()}.", path);
        }

        foreach (string flag in (string[])["single_word", "lstrip", "rstrip"])
        {
            if (token.FindBoolean(flag, path) ?? false)
            {
                throw new UnsupportedModelException($"'{flag}' of the added token '{content}' is not supported.", path);
            }
        }

        return new AddedToken(
            id, content, token.FindBoolean("special", path) ?? false, token.FindBoolean("normalized", path) ?? false);
    }

    private static Dictionary<string, int> ReadModel(JsonElement model, string path)
    {
        string type = model.FindString("type", path) ?? "BPE";
        if (type != "BPE")
        {
            throw new UnsupportedModelException($"model type '{type}' is not supported; expected 'BPE'.", path);
        }

        if (model.Find("dropout") is JsonElement dropout && !(dropout.ValueKind == JsonValueKind.Number && dropout.GetDouble() == 0))
        {
            throw new UnsupportedModelException($"'dropout' = {dropout.Quote()} is not supported.", path);
        }

        foreach (string key in (string[])["continuing_subword_prefix", "end_of_word_suffix"])
        {
            if (model.FindString(key, path) is { Length: > 0 } text)
            {
                throw new UnsupportedModelException($"'{key}' = '{text}' is not supported.", path);
            }
        }

        Dictionary<string, int> vocabulary = [];
        foreach (JsonProperty token in model.Require("vocab", JsonValueKind.Object, path).EnumerateObject())
        {
            if (token.Value.ValueKind != JsonValueKind.Number || !token.Value.TryGetInt32(out int id) || id < 0)
            {
                throw new CheckpointException($"expected an id for token '{token.Name}', but got {token.Value.Quote()}.", path);
            }

            vocabulary[token.Name] = id;
        }

        return vocabulary;
    }

    private static List<string> ReadMerges(JsonElement model, Dictionary<string, int> vocabulary, string path)
    {
        List<string> merges = [];
        foreach (JsonElement merge in model.Require("merges", JsonValueKind.Array, path).EnumerateArray())
        {
            // A pair is a string "left right" or, in newer files, an array of two.
            string[] parts = merge.ValueKind switch
            {
                JsonValueKind.String => merge.GetString()!.Split(' '),
                JsonValueKind.Array when merge.EnumerateArray().All(part => part.ValueKind == JsonValueKind.String) =>
                    merge.EnumerateArray().Select(part => part.GetString()!).ToArray(),
                _ => [],
            };
            if (parts.Length != 2 || parts.Any(part => part.Length == 0 || part.Contains(' ', StringComparison.Ordinal)))
            {
                throw new CheckpointException($"expected merges of two tokens without spaces, but got {merge.Quote()}.", path);
            }

            foreach (string token in (string[])[parts[0], parts[1], parts[0] + parts[1]])
            {
                if (!vocabulary.ContainsKey(token))
                {
                    throw new CheckpointException($"expected the tokens of merge {merge.Quote()} in the vocabulary, but '{token}' is not.", path);
                }
            }

            merges.Add($"{parts[0]} {parts[1]}");
        }

        return merges;
    }

    private static List<AddedToken> ReadAddedTokens(JsonElement root, string path)
    {
        List<AddedToken> added = [];
        if (root.Find("added_tokens") is not JsonElement list)
        {
            return added;
        }

        if (list.ValueKind != JsonValueKind.Array)
        {
            throw new CheckpointException($"expected an array 'added_tokens', but got {JsonKind.Describe(list.ValueKind)}.", path);
        }

        bool hasNormalizer = Steps(root, "normalizer", "normalizers", path).Length > 0;
        foreach (JsonElement token in list.EnumerateArray())
        {
            AddedToken read = ReadAddedToken(token, token.RequireInt32("id", path), path);
            AddedToken? known = added.Find(other => other.Content == read.Content);
            if (known is null)
            {
                added.Add(read with { IsNormalized = read.IsNormalized && hasNormalizer });
            }
            else if (known.Id != read.Id)
            {
                throw new CheckpointException(
                    $"expected one id for the added token '{read.Content}', but got {known.Id} and {read.Id}.", path);
            }
        }

        return added;
    }

    private static (List<int> Prefix, List<int> Suffix) ReadPostProcessor(JsonElement root, string path)
    {
        List<int> prefix = [];
        List<int> suffix = [];
        bool hasTemplate = false;
        foreach (JsonElement step in Steps(root, "post_processor", "processors", path))
        {
            switch (TypeOf(step))
            {
                // Only adjusts offsets into the text, which are not used here.
                case "ByteLevel":
                    break;
                case "TemplateProcessing" when !hasTemplate:
                    hasTemplate = true;
                    ReadTemplate(step, prefix, suffix, path);
                    break;
                default:
                    throw new UnsupportedModelException(
                        $"post-processor '{TypeOf(step)}' is not supported here; expected ByteLevel, or one TemplateProcessing.", path);
            }
        }

        return (prefix, suffix);
    }

    private static void ReadTemplate(JsonElement template, List<int> prefix, List<int> suffix, string path)
    {
        JsonElement specials = template.Require("special_tokens", JsonValueKind.Object, path);
        bool textSeen = false;
        foreach (JsonElement item in template.Require("single", JsonValueKind.Array, path).EnumerateArray())
        {
            if (item.Find("Sequence") is not null && !textSeen)
            {
                textSeen = true;
            }
            else if (item.Find("SpecialToken")?.FindString("id", path) is string name)
            {
                JsonElement ids = specials.Require(name, JsonValueKind.Object, path).Require("ids", JsonValueKind.Array, path);
                (textSeen ? suffix : prefix).AddRange(ids.EnumerateArray().Select(id => ReadId(id, name, path)));
            }
            else
            {
                throw new CheckpointException(
                    $"expected special tokens and one sequence in the post-processor's template, but got {item.Quote()}.", path);
            }
        }

        if (!textSeen)
        {
            throw new CheckpointException("expected a sequence in the post-processor's template, but it has none.", path);
        }
    }

    private static int ReadId(JsonElement id, string name, string path) =>
        id.ValueKind == JsonValueKind.Number && id.TryGetInt32(out int number) && number >= 0
            ? number
            : throw new CheckpointException(
                $"expected ids in 'post_processor' … 'special_tokens' … '{name}' … 'ids', but got {id.Quote()}.", path);

    private void RequireOneTokenPerId()
    {
        Dictionary<int, string> texts = [];
        IEnumerable<KeyValuePair<string, int>> all =
            Vocabulary.Concat(AddedTokens.Select(token => new KeyValuePair<string, int>(token.Content, token.Id)));
        foreach ((string text, int id) in all)
        {
            if (!texts.TryAdd(id, text) && texts[id] != text)
            {
                throw new CheckpointException($"expected one token per id, but {id} is '{texts[id]}' and '{text}'.", Path);
            }
        }

        foreach (int id in Prefix.Concat(Suffix))
        {
            if (!texts.ContainsKey(id))
            {
                throw new CheckpointException($"expected ids of the vocabulary in the post-processor's template, but got {id}.", Path);
            }
        }
    }

    private void RequireByteLevelTokens()
    {
        if (!ByteLevelAlphabet.Characters.ToArray().Any(character => Vocabulary.ContainsKey(character.ToString())))
        {
            throw new CheckpointException("expected tokens for bytes, but the vocabulary has none; is it a byte-level tokenizer?", Path);
        }

        HashSet<string> added = [.. AddedTokens.Select(token => token.Content)];
        foreach (string token in Vocabulary.Keys)
        {
            if (ByteLevelAlphabet.BytesOf(token) is null && !added.Contains(token))
            {
                throw new CheckpointException($"expected tokens of byte-level BPE, but '{token}' does not stand for bytes.", Path);
            }
        }
    }

    // Bytes stand for characters without a token, which are not merged.
    private void RequireCharacterTokens()
    {
        if (IgnoreMerges)
        {
            throw new UnsupportedModelException("'ignore_merges' is not supported in a tokenizer with byte fallback.", Path);
        }

        foreach (string merge in Merges)
        {
            if (merge.Contains("<0x", StringComparison.Ordinal) && merge.Split(' ').Any(IsByte))
            {
                throw new UnsupportedModelException($"merge '{merge}' of a byte is not supported.", Path);
            }
        }

        static bool IsByte(string token) => token is ['<', '0', 'x', _, _, '>'];
    }
}
