using System.Text;
using System.Text.Json;
using System.Text.RegularExpressions;
using Mustafar.Examples.Llama.Checkpoint;

namespace Mustafar.Examples.Llama.Tokenizer;

/// <summary>What a tokenizer.json of byte-level BPE says beside vocabulary and merges.</summary>
/// <param name="Splitters">Cut a text into pieces, each the pieces of the one before.</param>
/// <param name="AddPrefixSpace">Whether a text gets a space in front if it has none.</param>
/// <param name="Normalization">Unicode form that a text is brought to first; none if null.</param>
internal sealed record ByteLevelRules(IReadOnlyList<PieceSplitter> Splitters, bool AddPrefixSpace, NormalizationForm? Normalization)
{
    // The expression that a ByteLevel pre-tokenizer has built in (GPT-2's).
    private const string ByteLevelPattern = @"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

    /// <summary>Reads them from the root object.</summary>
    /// <exception cref="CheckpointException">A part is missing or not valid.</exception>
    /// <exception cref="UnsupportedModelException">A part is of a kind that is not implemented.</exception>
    public static ByteLevelRules Read(JsonElement root, string path)
    {
        NormalizationForm? normalization = ReadNormalizer(root, path);
        (List<string> patterns, bool addPrefixSpace) = ReadPreTokenizer(root, path);
        string decoder = TokenizerFile.TypeOf(root.Require("decoder", JsonValueKind.Object, path));
        return decoder == "ByteLevel"
            ? new ByteLevelRules([.. patterns.Select(pattern => MakeSplitter(pattern, path))], addPrefixSpace, normalization)
            : throw new UnsupportedModelException($"decoder '{decoder}' is not supported; expected 'ByteLevel'.", path);
    }

    /// <summary>The pieces of a text, in order.</summary>
    public IEnumerable<string> Split(string text, CancellationToken cancellationToken)
    {
        IEnumerable<string> pieces = [text];
        foreach (PieceSplitter splitter in Splitters)
        {
            pieces = pieces.SelectMany(piece => splitter.Split(piece, cancellationToken).Select(range => piece[range]));
        }

        return pieces;
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

    // Steps that split, and a ByteLevel behind them, which may split once more.
    private static (List<string> Patterns, bool AddPrefixSpace) ReadPreTokenizer(JsonElement root, string path)
    {
        root.Require("pre_tokenizer", JsonValueKind.Object, path);
        JsonElement[] steps = TokenizerFile.Steps(root, "pre_tokenizer", "pretokenizers", path);
        string[] types = [.. steps.Select(TokenizerFile.TypeOf)];
        if (types is not [.., "ByteLevel"] || types[..^1].Any(type => type is not ("Split" or "Digits")))
        {
            throw new UnsupportedModelException(
                $"pre-tokenizer [{string.Join(", ", types)}] is not supported; expected any of Split and Digits, and ByteLevel as the last.",
                path);
        }

        List<string> patterns = [.. steps[..^1].Select(step => TokenizerFile.TypeOf(step) == "Split" ? ReadSplit(step, path) : ReadDigits(step, path))];
        bool addPrefixSpace = steps[^1].FindBoolean("add_prefix_space", path) ?? true;
        if (patterns.Count > 0 && addPrefixSpace)
        {
            // The space would go in front of each piece.
            throw new UnsupportedModelException("'add_prefix_space' of a ByteLevel after other steps is not supported.", path);
        }

        if (steps[^1].FindBoolean("use_regex", path) ?? true)
        {
            patterns.Add(ByteLevelPattern);
        }

        return (patterns, addPrefixSpace);
    }

    private static string ReadDigits(JsonElement digits, string path) =>
        (digits.FindBoolean("individual_digits", path) ?? false) ? @"\p{N}" : @"\p{N}+";

    private static string ReadSplit(JsonElement split, string path)
    {
        string behavior = split.FindString("behavior", path) ?? "";
        if (behavior != "Isolated" || (split.FindBoolean("invert", path) ?? false))
        {
            throw new UnsupportedModelException(
                $"a Split with behavior '{behavior}' or 'invert' is not supported; expected 'Isolated', not inverted.", path);
        }

        JsonElement pattern = split.Require("pattern", JsonValueKind.Object, path);
        return pattern.FindString("Regex", path)
            ?? (pattern.FindString("String", path) is { Length: > 0 } literal
                ? Regex.Escape(literal)
                : throw new CheckpointException("expected a 'Regex' or a 'String' as 'pattern' of a Split.", path));
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
