using System.CommandLine;
using Mustafar.Models.Generation;

namespace Mustafar.Examples.Llama.Commands;

/// <summary>Options for generating several continuations of one prompt and printing the best.</summary>
internal sealed class HypothesisOptions
{
    private readonly Option<int?> _bestOf = CommandOption.Number<int>(
        "--best-of", "Sample N continuations and print the one whose tokens have the highest mean log-probability.", "N");

    private readonly Option<int?> _beams = CommandOption.Number<int>(
        "--beams", "Beam search with N beams, without sampling.", "N");

    private readonly Option<double?> _lengthPenalty = CommandOption.Number<double>(
        "--length-penalty", "With --beams: a score is log-probability / tokens^P; default: 1.", "P");

    private readonly Option<int?> _nBest = CommandOption.Number<int>(
        "--n-best", "With --best-of or --beams: print the N best continuations with their scores; default: 1.", "N");

    /// <summary>All of them.</summary>
    public IEnumerable<Option> All => [_bestOf, _beams, _lengthPenalty, _nBest];

    /// <summary>The values on the command line; null for one continuation of each prompt.</summary>
    /// <param name="arguments">The command line.</param>
    /// <param name="prompts">Number of prompts.</param>
    /// <param name="generation">The sampling options.</param>
    /// <param name="sampling">Their values.</param>
    /// <exception cref="CommandException">A value is not valid, or an option does not go with the others.</exception>
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
            throw new CommandException("--length-penalty: needs --beams.");
        }

        if ((bestOf ?? beams) is not int count)
        {
            return nBest is null ? null : throw new CommandException("--n-best: needs --best-of or --beams.");
        }

        string name = beams is null ? _bestOf.Name : _beams.Name;
        if (prompts > 1)
        {
            throw new CommandException($"{name}: expected one prompt, but got {prompts}.");
        }

        if (nBest > count)
        {
            throw new CommandException($"--n-best: expected at most {count}, the value of {name}, but got {nBest}.");
        }

        if (beams is not null && generation.GivenSampling(arguments) is [string given, ..])
        {
            throw new CommandException($"{given}: a beam search does not sample, so this can't be used with --beams.");
        }

        if (bestOf > 1 && sampling.Temperature == 0)
        {
            throw new CommandException("--best-of: expected a --temperature above 0; at 0 all continuations would be the same.");
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

/// <summary>How to generate several continuations of one prompt: by sampling or by beam search.</summary>
/// <param name="BestOf">How to sample each continuation; null for a beam search.</param>
/// <param name="Beams">How to search; null to sample.</param>
/// <param name="Count">Continuations to print.</param>
internal sealed record HypothesisSettings(SamplingParameters[]? BestOf, BeamSearchOptions? Beams, int Count);
