using System.Text;
using System.Text.Json;
using Mustafar.Examples.Llama.Checkpoint;

namespace Mustafar.Examples.Llama.Tokenizer;

/// <summary>What a tokenizer.json of byte-level BPE says beside vocabulary and merges.</summary>
/// <param name="Splitter">Cuts a text into pieces.</param>
/// <param name="AddPrefixSpace">Whether a text gets a space in front if it has none.</param>
/// <param name="Normalization">Unicode form that a text is brought to first; none if null.</param>
internal sealed record ByteLevelRules(PieceSplitter Splitter, bool AddPrefixSpace, NormalizationForm? Normalization)
{
    // The expression that a ByteLevel pre-tokenizer has built in (GPT-2's).
    private const string ByteLevelPattern = @"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

    /// <summary>Reads them from the root object.</summary>
    /// <exception cref="CheckpointException">A part is missing or not valid.</exception>
    /// <exception cref="UnsupportedModelException">A part is of a kind that is not implemented.</exception>
    public static ByteLevelRules Read(JsonElement root, string path)
    {
        NormalizationForm? normalization = ReadNormalizer(root, path);
        (string pattern, bool addPrefixSpace) = ReadPreTokenizer(root, path);
        string decoder = TokenizerFile.TypeOf(root.Require("decoder", JsonValueKind.Object, path));
        return decoder == "ByteLevel"
            ? new ByteLevelRules(MakeSplitter(pattern, path), addPrefixSpace, normalization)
            : throw new UnsupportedModelException($"decoder '{decoder}' is not supported; expected 'ByteLevel'.", path);
    }

    private static NormalizationForm? ReadNormalizer(JsonElement root, string path)
    {
        JsonElement[] steps = TokenizerFile.Steps(root, "normalizer", "normalizers", path);
        if (steps.Length == 0)
        {
            return null;
        }

        string[] types = [.. steps.Select(TokenizerFile.TypeOf)];
        if (types is not ["NFC"])
        {
            throw new UnsupportedModelException($"normalizer [{string.Join(", ", types)}] is not supported; expected NFC or none.", path);
        }

        // Without data on Unicode, .NET would leave texts as they are.
        return "e\u0301".Normalize(NormalizationForm.FormC) == "\u00E9"
            ? NormalizationForm.FormC
            : throw new UnsupportedModelException("normalizer 'NFC' needs the Unicode data that this .NET runs without.", path);
    }

    // Either a ByteLevel that splits by its built-in expression, or a Split by the file's expression and a ByteLevel that doesn't.
    private static (string Pattern, bool AddPrefixSpace) ReadPreTokenizer(JsonElement root, string path)
    {
        root.Require("pre_tokenizer", JsonValueKind.Object, path);
        JsonElement[] steps = TokenizerFile.Steps(root, "pre_tokenizer", "pretokenizers", path);
        string[] types = [.. steps.Select(TokenizerFile.TypeOf)];
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
}
