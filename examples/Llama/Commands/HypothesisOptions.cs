using System.CommandLine;
using Mustafar.Models.Generation;

namespace Mustafar.Examples.Llama.Commands;

/// <summary>Options for several continuations of one prompt, of which the best are printed.</summary>
internal sealed class HypothesisOptions
{
    private readonly Option<int?> _bestOf = CommandOption.Number<int>(
        "--best-of", "Draw N continuations side by side, and print the one with the highest mean log-probability of its tokens.", "N");

    private readonly Option<int?> _beams = CommandOption.Number<int>(
        "--beams", "Search for the likeliest continuation with N beams; nothing is drawn.", "N");

    private readonly Option<double?> _lengthPenalty = CommandOption.Number<double>(
        "--length-penalty", "With --beams, the power of the length in a score, log-probability / tokens^P; 1 if not given.", "P");

    private readonly Option<int?> _nBest = CommandOption.Number<int>(
        "--n-best", "With --best-of or --beams, print the N best continuations, each with its score; 1 if not given.", "N");

    /// <summary>All of them.</summary>
    public IEnumerable<Option> All => [_bestOf, _beams, _lengthPenalty, _nBest];

    /// <summary>What the command line asks for; null for one continuation of each prompt.</summary>
    /// <param name="arguments">The command line.</param>
    /// <param name="prompts">Number of prompts.</param>
    /// <param name="generation">Options that say how tokens are drawn.</param>
    /// <param name="sampling">How they are drawn.</param>
    /// <exception cref="CommandException">A value is not one that can be used, or an option doesn't go with the others.</exception>
    public HypothesisSettings? Read(ParseResult arguments, int prompts, GenerationOptions generation, SamplingParameters sampling)
    {
        int? bestOf = Positive(arguments, _bestOf);
        int? beams = Positive(arguments, _beams);
        int? nBest = Positive(arguments, _nBest);
        double? lengthPenalty = arguments.GetValue(_lengthPenalty);
        if (bestOf is not null && beams is not null)
        {
            throw new CommandException("expected --best-of or --beams, but got both.");
        }

        if (lengthPenalty is not null && beams is null)
        {
            throw new CommandException("--length-penalty: only --beams has one.");
        }

        if ((bestOf ?? beams) is not int count)
        {
            return nBest is null ? null : throw new CommandException("--n-best: only --best-of and --beams have several continuations.");
        }

        string name = beams is null ? _bestOf.Name : _beams.Name;
        if (prompts > 1)
        {
            throw new CommandException($"{name}: expected one prompt, but got {prompts}.");
        }

        if (nBest > count)
        {
            throw new CommandException($"--n-best: expected at most {count}, as many as {name} gives, but got {nBest}.");
        }

        if (beams is not null && generation.GivenSampling(arguments) is [string given, ..])
        {
            throw new CommandException($"{given}: a beam search draws nothing, so it can't be used with --beams.");
        }

        if (bestOf > 1 && sampling.Temperature == 0)
        {
            throw new CommandException("--best-of: expected a --temperature above 0, without which all continuations are the same.");
        }

        return new HypothesisSettings(
            bestOf is null ? null : [.. Enumerable.Range(0, count).Select(i => sampling with { Seed = unchecked(sampling.Seed + (ulong)i) })],
            beams is null
                ? null
                : CommandOption.Made(
                    () => new BeamSearchOptions { Beams = count, LengthPenalty = lengthPenalty ?? 1 },
                    (nameof(BeamSearchOptions.LengthPenalty), _lengthPenalty)),
            nBest ?? 1);
    }

    private static int? Positive(ParseResult arguments, Option<int?> option) =>
        arguments.GetValue(option) is int value ? CommandOption.Positive(option.Name, value) : null;
}

/// <summary>How several continuations of one prompt are made; by drawing, or by a beam search.</summary>
/// <param name="BestOf">How tokens are drawn, for each continuation; null for a beam search.</param>
/// <param name="Beams">How to search; null to draw.</param>
/// <param name="Count">Continuations to print.</param>
internal sealed record HypothesisSettings(SamplingParameters[]? BestOf, BeamSearchOptions? Beams, int Count);
