using System.Text.Json;
using Mustafar.Models.Checkpoint;

namespace Mustafar.Models.Tokenizer;

/// <summary>Where a SentencePiece-style tokenizer puts a space before a text.</summary>
internal enum SpaceInFront
{
    /// <summary>Nowhere.</summary>
    Never,

    /// <summary>Before the whole text, unless one is there.</summary>
    First,

    /// <summary>Before each part between added tokens, unless one is there.</summary>
    EachWithout,

    /// <summary>Before each part between added tokens.</summary>
    Each,
}

/// <summary>The rules in a tokenizer.json of BPE with byte fallback, apart from vocabulary and merges.</summary>
/// <param name="InFront">Where a space is added.</param>
/// <param name="SplitsAtSpaces">Whether merges stay within words; a word begins with its space.</param>
/// <param name="DropsFirstSpace">Whether a leading space of a decoded text is omitted.</param>
internal sealed record ByteFallbackRules(SpaceInFront InFront, bool SplitsAtSpaces, bool DropsFirstSpace)
{
    private static readonly string s_space = ByteFallback.Space.ToString();

    /// <summary>Reads them from the root object.</summary>
    /// <exception cref="CheckpointException">A part is not valid.</exception>
    /// <exception cref="UnsupportedModelException">A part is of a kind that is not implemented.</exception>
    public static ByteFallbackRules Read(JsonElement root, string path)
    {
        (SpaceInFront? ofNormalizer, bool replaces) = ReadNormalizer(root, path);
        (SpaceInFront? ofPreTokenizer, bool splits) = ReadPreTokenizer(root, path);
        if (!replaces && ofPreTokenizer is null)
        {
            throw new UnsupportedModelException("a tokenizer with byte fallback that doesn't replace spaces is not supported.", path);
        }

        if (ofNormalizer is not null && ofPreTokenizer is not (null or SpaceInFront.Never))
        {
            throw new UnsupportedModelException("a normalizer and a pre-tokenizer that both add a space are not supported.", path);
        }

        return new ByteFallbackRules(ofNormalizer ?? ofPreTokenizer ?? SpaceInFront.Never, splits, ReadDecoder(root, path));
    }

    /// <summary>A part of a text with its spaces as the vocabulary has them.</summary>
    public string WithSpaces(string text, bool isFirst)
    {
        string spaced = text.Replace(' ', ByteFallback.Space);
        bool adds = InFront switch
        {
            SpaceInFront.Each => true,
            SpaceInFront.EachWithout => spaced[0] != ByteFallback.Space,
            SpaceInFront.First => isFirst && spaced[0] != ByteFallback.Space,
            _ => false,
        };
        return adds ? ByteFallback.Space + spaced : spaced;
    }

    private static (SpaceInFront? InFront, bool Replaces) ReadNormalizer(JsonElement root, string path)
    {
        SpaceInFront? inFront = null;
        bool replaces = false;
        foreach (JsonElement step in TokenizerFile.Steps(root, "normalizer", "normalizers", path))
        {
            switch (TokenizerFile.TypeOf(step))
            {
                case "Prepend" when step.FindString("prepend", path) == s_space && inFront is null && !replaces:
                    inFront = SpaceInFront.Each;
                    break;
                case "Replace" when Replaces(step, " ", s_space, path) && !replaces:
                    replaces = true;
                    break;
                default:
                    throw Unsupported("normalizer", step, path);
            }
        }

        return (inFront, replaces);
    }

    private static (SpaceInFront? InFront, bool Splits) ReadPreTokenizer(JsonElement root, string path)
    {
        JsonElement[] steps = TokenizerFile.Steps(root, "pre_tokenizer", "pretokenizers", path);
        if (steps.Length == 0)
        {
            return (null, false);
        }

        JsonElement step = steps[0];
        if (steps.Length > 1 || TokenizerFile.TypeOf(step) != "Metaspace" || step.FindString("replacement", path) != s_space)
        {
            throw Unsupported("pre-tokenizer", step, path);
        }

        string scheme = step.FindString("prepend_scheme", path)
            ?? ((step.FindBoolean("add_prefix_space", path) ?? true) ? "always" : "never");
        SpaceInFront inFront = scheme switch
        {
            "always" => SpaceInFront.EachWithout,
            "first" => SpaceInFront.First,
            "never" => SpaceInFront.Never,
            _ => throw new UnsupportedModelException($"'prepend_scheme' = '{scheme}' is not supported.", path),
        };
        return (inFront, step.FindBoolean("split", path) ?? true);
    }

    private static bool ReadDecoder(JsonElement root, string path)
    {
        root.Require("decoder", JsonValueKind.Object, path);
        JsonElement[] steps = TokenizerFile.Steps(root, "decoder", "decoders", path);
        string[] types = [.. steps.Select(TokenizerFile.TypeOf)];
        bool strips = types is ["Replace", "ByteFallback", "Fuse", "Strip"];
        bool isKnown = (strips || types is ["Replace", "ByteFallback", "Fuse"])
            && Replaces(steps[0], s_space, " ", path)
            && (!strips || (steps[3].FindString("content", path) == " "
                && steps[3].FindInt32("start", path) == 1 && (steps[3].FindInt32("stop", path) ?? 0) == 0));
        return isKnown
            ? strips
            : throw new UnsupportedModelException(
                $"decoder [{string.Join(", ", types)}] is not supported; expected [Replace, ByteFallback, Fuse], and Strip of one leading space.",
                path);
    }

    private static bool Replaces(JsonElement step, string from, string to, string path) =>
        step.Find("pattern")?.FindString("String", path) == from && step.FindString("content", path) == to;

    private static UnsupportedModelException Unsupported(string part, JsonElement step, string path) =>
        new($"{part} {step.Quote()} is not supported in a tokenizer with byte fallback.", path);
}
