using System.Text;
using System.Text.Json;
using System.Text.RegularExpressions;
using Mustafar.Models.Checkpoint;

namespace Mustafar.Models.Tokenizer;

/// <summary>The rules in a tokenizer.json of byte-level BPE, apart from vocabulary and merges.</summary>
/// <param name="Splitters">Split a text into pieces, each one the pieces of the one before.</param>
/// <param name="AddPrefixSpace">Whether a piece without a leading space gets one.</param>
/// <param name="ByteLevelSplitter">Splits these pieces once more; null for none.</param>
/// <param name="Normalization">Unicode form to which a text is converted first; none if null.</param>
internal sealed record ByteLevelRules(
    IReadOnlyList<PieceSplitter> Splitters, bool AddPrefixSpace, PieceSplitter? ByteLevelSplitter, NormalizationForm? Normalization)
{
    // The built-in expression of a ByteLevel pre-tokenizer (GPT-2's).
    private const string ByteLevelPattern = @"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

    /// <summary>Reads them from the root object.</summary>
    /// <exception cref="CheckpointException">A part is missing or not valid.</exception>
    /// <exception cref="UnsupportedModelException">A part is of a kind that is not implemented.</exception>
    public static ByteLevelRules Read(JsonElement root, string path)
    {
        NormalizationForm? normalization = ReadNormalizer(root, path);
        (List<SplitRule> rules, bool addPrefixSpace, bool usesRegex) = ReadPreTokenizer(root, path);
        string decoder = TokenizerFile.TypeOf(root.Require("decoder", JsonValueKind.Object, path));
        return decoder == "ByteLevel"
            ? new ByteLevelRules(
                [.. rules.Select(rule => MakeSplitter(rule, path))],
                addPrefixSpace,
                usesRegex ? new PieceSplitter(new SplitRule(ByteLevelPattern)) : null,
                normalization)
            : throw new UnsupportedModelException($"decoder '{decoder}' is not supported; expected 'ByteLevel'.", path);
    }

    /// <summary>The pieces of a text, in order.</summary>
    public IEnumerable<string> Split(string text, CancellationToken cancellationToken)
    {
        IEnumerable<string> pieces = [text];
        foreach (PieceSplitter splitter in Splitters)
        {
            pieces = Split(pieces, splitter, cancellationToken);
        }

        if (AddPrefixSpace)
        {
            pieces = pieces.Select(piece => piece[0] == ' ' ? piece : ' ' + piece);
        }

        return ByteLevelSplitter is null ? pieces : Split(pieces, ByteLevelSplitter, cancellationToken);
    }

    private static IEnumerable<string> Split(IEnumerable<string> pieces, PieceSplitter splitter, CancellationToken cancellationToken) =>
        pieces.SelectMany(piece => splitter.Split(piece, cancellationToken).Select(range => piece[range]));

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

        // Without Unicode data, .NET would leave texts unchanged.
        return "e\u0301".Normalize(NormalizationForm.FormC) == "\u00E9"
            ? NormalizationForm.FormC
            : throw new UnsupportedModelException("normalizer 'NFC' needs Unicode data, which is missing in this .NET runtime.", path);
    }

    // Steps that split, followed by a ByteLevel, which may split once more.
    private static (List<SplitRule> Rules, bool AddPrefixSpace, bool UsesRegex) ReadPreTokenizer(JsonElement root, string path)
    {
        root.Require("pre_tokenizer", JsonValueKind.Object, path);
        JsonElement[] steps = TokenizerFile.Steps(root, "pre_tokenizer", "pretokenizers", path);
        string[] types = [.. steps.Select(TokenizerFile.TypeOf)];
        if (types is not [.., "ByteLevel"] || types[..^1].Any(type => type is not ("Split" or "Digits")))
        {
            throw new UnsupportedModelException(
                $"pre-tokenizer [{string.Join(", ", types)}] is not supported; expected any number of Split and Digits, then ByteLevel.",
                path);
        }

        return (
            [.. steps[..^1].Select(step => TokenizerFile.TypeOf(step) == "Split" ? ReadSplit(step, path) : ReadDigits(step, path))],
            steps[^1].FindBoolean("add_prefix_space", path) ?? true,
            steps[^1].FindBoolean("use_regex", path) ?? true);
    }

    private static SplitRule ReadDigits(JsonElement digits, string path) =>
        new((digits.FindBoolean("individual_digits", path) ?? false) ? @"\p{N}" : @"\p{N}+");

    private static SplitRule ReadSplit(JsonElement split, string path)
    {
        string name = split.FindString("behavior", path) ?? "";
        if (!Enum.TryParse(name, out SplitBehavior behavior) || !Enum.IsDefined(behavior) || int.TryParse(name, out _))
        {
            throw new UnsupportedModelException(
                $"a Split with behavior '{name}' is not supported; expected one of {string.Join(", ", Enum.GetNames<SplitBehavior>())}.", path);
        }

        JsonElement pattern = split.Require("pattern", JsonValueKind.Object, path);
        string expression = pattern.FindString("Regex", path)
            ?? (pattern.FindString("String", path) is { Length: > 0 } literal
                ? Regex.Escape(literal)
                : throw new CheckpointException("expected a 'Regex' or a 'String' as 'pattern' of a Split.", path));
        return new SplitRule(expression, behavior, split.FindBoolean("invert", path) ?? false);
    }

    private static PieceSplitter MakeSplitter(SplitRule rule, string path)
    {
        try
        {
            return new PieceSplitter(rule);
        }
        catch (ArgumentException exception)
        {
            throw new UnsupportedModelException($"the pre-tokenizer's expression is not supported: {exception.Message}", path);
        }
    }
}
