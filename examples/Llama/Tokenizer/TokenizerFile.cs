using System.Text.Json;
using Mustafar.Examples.Llama.Checkpoint;

namespace Mustafar.Examples.Llama.Tokenizer;

/// <summary>A token with a meaning of its own, which is found in a text before anything else.</summary>
/// <param name="Id">Its id.</param>
/// <param name="Content">Its text.</param>
/// <param name="IsSpecial">Whether it is left out of decoded text.</param>
internal sealed record AddedToken(int Id, string Content, bool IsSpecial);

/// <summary>
/// What a tokenizer.json of byte-level BPE says. What would change ids and isn't implemented is refused, never ignored.
/// </summary>
internal sealed class TokenizerFile
{
    // The expression that a ByteLevel pre-tokenizer has built in (GPT-2's).
    private const string ByteLevelPattern = @"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

    private readonly string _path;

    private TokenizerFile(string path) => _path = path;

    /// <summary>Ids of the model's tokens, in the byte-level alphabet.</summary>
    public required IReadOnlyDictionary<string, int> Vocabulary { get; init; }

    /// <summary>Pairs of tokens to merge, first to last, as "left right".</summary>
    public required IReadOnlyList<string> Merges { get; init; }

    /// <summary>Whether a piece that is a token as a whole is never merged from parts.</summary>
    public required bool IgnoreMerges { get; init; }

    /// <summary>Tokens that are found in a text before anything else.</summary>
    public required IReadOnlyList<AddedToken> AddedTokens { get; init; }

    /// <summary>Cuts a text into pieces.</summary>
    public required PieceSplitter Splitter { get; init; }

    /// <summary>Whether a text gets a space in front if it has none.</summary>
    public required bool AddPrefixSpace { get; init; }

    /// <summary>Ids in front of a text.</summary>
    public required IReadOnlyList<int> Prefix { get; init; }

    /// <summary>Ids behind a text.</summary>
    public required IReadOnlyList<int> Suffix { get; init; }

    /// <summary>Reads a file.</summary>
    /// <param name="path">A tokenizer.json.</param>
    /// <exception cref="FileNotFoundException">There is no such file.</exception>
    /// <exception cref="CheckpointException">A part is missing or not valid.</exception>
    /// <exception cref="UnsupportedModelException">A part is of a kind that is not implemented.</exception>
    public static TokenizerFile Load(string path)
    {
        using JsonDocument document = JsonFile.Open(path);
        JsonElement root = document.RootElement;
        foreach (string part in (string[])["normalizer", "truncation", "padding"])
        {
            if (root.Find(part) is JsonElement value)
            {
                throw new UnsupportedModelException($"a {part} ({TypeOf(value)}) is not supported.", path);
            }
        }

        JsonElement model = root.Require("model", JsonValueKind.Object, path);
        Dictionary<string, int> vocabulary = ReadModel(model, path);
        List<AddedToken> added = ReadAddedTokens(root, path);
        (string pattern, bool addPrefixSpace) = ReadPreTokenizer(root, path);
        RequireByteLevelDecoder(root, path);
        (List<int> prefix, List<int> suffix) = ReadPostProcessor(root, path);
        return new TokenizerFile(path)
        {
            Vocabulary = vocabulary,
            Merges = ReadMerges(model, vocabulary, path),
            IgnoreMerges = model.FindBoolean("ignore_merges", path) ?? false,
            AddedTokens = added,
            Splitter = MakeSplitter(pattern, path),
            AddPrefixSpace = addPrefixSpace,
            Prefix = prefix,
            Suffix = suffix,
        }.Checked();
    }

    private static string TypeOf(JsonElement part) => part.Find("type")?.ToString() ?? "of unknown type";

    private static Dictionary<string, int> ReadModel(JsonElement model, string path)
    {
        string type = model.FindString("type", path) ?? "BPE";
        if (type != "BPE")
        {
            throw new UnsupportedModelException($"model type '{type}' is not supported; expected 'BPE'.", path);
        }

        if (model.FindBoolean("byte_fallback", path) ?? false)
        {
            throw new UnsupportedModelException("a SentencePiece-style model ('byte_fallback') is not supported; expected byte-level BPE.", path);
        }

        if (model.Find("dropout") is JsonElement dropout && !(dropout.ValueKind == JsonValueKind.Number && dropout.GetDouble() == 0))
        {
            throw new UnsupportedModelException($"'dropout' = {dropout.GetRawText()} is not supported.", path);
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
                throw new CheckpointException($"expected an id for token '{token.Name}', but got {token.Value.GetRawText()}.", path);
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
                throw new CheckpointException($"expected merges of two tokens without spaces, but got {merge.GetRawText()}.", path);
            }

            foreach (string token in (string[])[parts[0], parts[1], parts[0] + parts[1]])
            {
                if (!vocabulary.ContainsKey(token))
                {
                    throw new CheckpointException($"expected the tokens of merge {merge.GetRawText()} in the vocabulary, but '{token}' is not.", path);
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
            throw new CheckpointException($"expected an array 'added_tokens', but got {JsonFile.Describe(list.ValueKind)}.", path);
        }

        foreach (JsonElement token in list.EnumerateArray())
        {
            string? content = token.FindString("content", path);
            if (string.IsNullOrEmpty(content))
            {
                throw new CheckpointException($"expected a text as 'content' of each added token, but got {token.GetRawText()}.", path);
            }

            foreach (string flag in (string[])["single_word", "lstrip", "rstrip"])
            {
                if (token.FindBoolean(flag, path) ?? false)
                {
                    throw new UnsupportedModelException($"'{flag}' of the added token '{content}' is not supported.", path);
                }
            }

            added.Add(new AddedToken(token.RequireInt32("id", path), content, token.FindBoolean("special", path) ?? false));
        }

        return added;
    }

    // Either a ByteLevel that splits by its built-in expression, or a Split by the file's expression and a ByteLevel that doesn't.
    private static (string Pattern, bool AddPrefixSpace) ReadPreTokenizer(JsonElement root, string path)
    {
        JsonElement preTokenizer = root.Require("pre_tokenizer", JsonValueKind.Object, path);
        JsonElement[] steps = TypeOf(preTokenizer) == "Sequence"
            ? [.. preTokenizer.Require("pretokenizers", JsonValueKind.Array, path).EnumerateArray()]
            : [preTokenizer];
        string[] types = [.. steps.Select(TypeOf)];
        if (types is not (["ByteLevel"] or ["Split", "ByteLevel"]))
        {
            throw new UnsupportedModelException(
                $"pre-tokenizer [{string.Join(", ", types)}] is not supported; expected [ByteLevel] or [Split, ByteLevel].", path);
        }

        JsonElement byteLevel = steps[^1];
        bool addPrefixSpace = byteLevel.FindBoolean("add_prefix_space", path) ?? true;
        bool usesBuiltIn = byteLevel.FindBoolean("use_regex", path) ?? true;
        if (types.Length == 1)
        {
            return usesBuiltIn
                ? (ByteLevelPattern, addPrefixSpace)
                : throw new UnsupportedModelException("a ByteLevel pre-tokenizer with neither a Split nor 'use_regex' is not supported.", path);
        }

        // The space would go in front of each piece.
        if (usesBuiltIn || addPrefixSpace)
        {
            throw new UnsupportedModelException("'use_regex' or 'add_prefix_space' of a ByteLevel after a Split is not supported.", path);
        }

        JsonElement split = steps[0];
        string behavior = split.FindString("behavior", path) ?? "";
        if (behavior != "Isolated" || (split.FindBoolean("invert", path) ?? false))
        {
            throw new UnsupportedModelException(
                $"a Split with behavior '{behavior}' or 'invert' is not supported; expected 'Isolated', not inverted.", path);
        }

        return split.Require("pattern", JsonValueKind.Object, path).FindString("Regex", path) is string pattern
            ? (pattern, false)
            : throw new UnsupportedModelException("a Split by a literal text is not supported; expected a 'Regex'.", path);
    }

    private static PieceSplitter MakeSplitter(string pattern, string path)
    {
        try
        {
            return new PieceSplitter(pattern);
        }
        catch (ArgumentException exception)
        {
            throw new UnsupportedModelException($"the pre-tokenizer's expression is not supported: {exception.Message}", path);
        }
    }

    private static void RequireByteLevelDecoder(JsonElement root, string path)
    {
        string type = TypeOf(root.Require("decoder", JsonValueKind.Object, path));
        if (type != "ByteLevel")
        {
            throw new UnsupportedModelException($"decoder '{type}' is not supported; expected 'ByteLevel'.", path);
        }
    }

    private static (List<int> Prefix, List<int> Suffix) ReadPostProcessor(JsonElement root, string path)
    {
        if (root.Find("post_processor") is not JsonElement processor)
        {
            return ([], []);
        }

        JsonElement[] steps = TypeOf(processor) == "Sequence"
            ? [.. processor.Require("processors", JsonValueKind.Array, path).EnumerateArray()]
            : [processor];
        List<int> prefix = [];
        List<int> suffix = [];
        bool hasTemplate = false;
        foreach (JsonElement step in steps)
        {
            switch (TypeOf(step))
            {
                // Adjusts offsets into the text, which are not used here.
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
                (textSeen ? suffix : prefix).AddRange(ids.EnumerateArray().Select(id => id.GetInt32()));
            }
            else
            {
                throw new CheckpointException(
                    $"expected special tokens and one sequence in the post-processor's template, but got {item.GetRawText()}.", path);
            }
        }

        if (!textSeen)
        {
            throw new CheckpointException("expected a sequence in the post-processor's template, but it has none.", path);
        }
    }

    private TokenizerFile Checked()
    {
        foreach (char character in ByteLevelAlphabet.Characters)
        {
            if (!Vocabulary.ContainsKey(character.ToString()))
            {
                throw new CheckpointException(
                    $"expected a token for every byte, but '{character}' is not in the vocabulary; is it a byte-level tokenizer?", _path);
            }
        }

        Dictionary<int, string> texts = [];
        IEnumerable<KeyValuePair<string, int>> all =
            Vocabulary.Concat(AddedTokens.Select(token => new KeyValuePair<string, int>(token.Content, token.Id)));
        foreach ((string text, int id) in all)
        {
            if (!texts.TryAdd(id, text) && texts[id] != text)
            {
                throw new CheckpointException($"expected one token per id, but {id} is '{texts[id]}' and '{text}'.", _path);
            }
        }

        foreach (string token in Vocabulary.Keys)
        {
            if (ByteLevelAlphabet.BytesOf(token) is null && !AddedTokens.Any(added => added.Content == token))
            {
                throw new CheckpointException($"expected tokens of byte-level BPE, but '{token}' stands for no bytes.", _path);
            }
        }

        foreach (int id in Prefix.Concat(Suffix))
        {
            if (!texts.ContainsKey(id))
            {
                throw new CheckpointException($"expected ids of the vocabulary in the post-processor's template, but got {id}.", _path);
            }
        }

        return this;
    }
}
