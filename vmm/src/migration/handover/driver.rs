//! The loop that drives a handover's state machine: an input leads to outputs, and carrying them out may lead to
//! the next input.

use std::collections::VecDeque;

use super::destination::{Destination, DestinationInput, DestinationOutput};
use super::source::{Source, SourceInput, SourceOutput};

/// One half of a handover, as a state machine.
pub(crate) trait Half: Copy {
    /// What happens to it.
    type Input;
    /// What its host must do.
    type Output;
    /// The next state, and what to do in this order.
    fn step(self, input: Self::Input) -> (Self, Vec<Self::Output>);
}

impl Half for Source {
    type Input = SourceInput;
    type Output = SourceOutput;

    fn step(self, input: SourceInput) -> (Self, Vec<SourceOutput>) {
        self.on(input)
    }
}

impl Half for Destination {
    type Input = DestinationInput;
    type Output = DestinationOutput;

    fn step(self, input: DestinationInput) -> (Self, Vec<DestinationOutput>) {
        self.on(input)
    }
}

/// Carries out one output. Its result is the next input, if there is one.
type Perform<'a, H, F> =
    dyn FnMut(&H, <H as Half>::Output) -> Result<Option<<H as Half>::Input>, F> + 'a;

/// Gives `half` its next input. Then `perform` carries out the outputs in order, and their results are the next
/// inputs, until there are no more.
///
/// # Errors
/// The first error of `perform`. The outputs after it are not carried out.
pub(crate) fn advance<H: Half, F>(
    half: &mut H,
    input: H::Input,
    perform: &mut Perform<'_, H, F>,
) -> Result<(), F> {
    let (next, outputs) = half.step(input);
    *half = next;
    carry_out(half, outputs, perform)
}

/// The same, but begins with outputs: those that a half has from the start.
///
/// # Errors
/// As [`advance`].
pub(crate) fn carry_out<H: Half, F>(
    half: &mut H,
    outputs: Vec<H::Output>,
    perform: &mut Perform<'_, H, F>,
) -> Result<(), F> {
    let (mut outputs, mut inputs) = (outputs, VecDeque::new());
    loop {
        for output in outputs {
            inputs.extend(perform(half, output)?);
        }
        let Some(input) = inputs.pop_front() else { return Ok(()) };
        (*half, outputs) = half.step(input);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migration::handover::{DestinationState, Step};
    use crate::migration::wire::{Say, Secret, Transfer, VmId};

    /// A commit leads to the journal, the journal to the guest, and that to the word, in this order.
    #[test]
    fn what_follows_from_an_input_is_carried_out_in_order() {
        let transfer = Transfer { vm: VmId([1; 16]), epoch: 1 };
        let (mut half, first) = Destination::new(transfer, Secret([2; 16]));
        let mut done = Vec::new();
        let mut perform = |_: &Destination, output: DestinationOutput| {
            let is_write = matches!(output, DestinationOutput::WriteJournal(_));
            done.push(output);
            Ok::<_, ()>(is_write.then_some(DestinationInput::JournalWritten))
        };
        carry_out(&mut half, first, &mut perform).unwrap();
        advance(&mut half, DestinationInput::Commit { is_last: false }, &mut perform).unwrap();
        assert_eq!(half.state, DestinationState::Running);
        let expected = [
            DestinationOutput::Send(Say::Prepared),
            DestinationOutput::WriteJournal(Step::Owner),
            DestinationOutput::RunGuest,
            DestinationOutput::Send(Say::Running),
        ];
        assert_eq!(done, expected);
    }

    /// What fails leaves the rest undone.
    #[test]
    fn a_failure_ends_the_loop() {
        let transfer = Transfer { vm: VmId([1; 16]), epoch: 1 };
        let (mut half, _) = Destination::new(transfer, Secret([2; 16]));
        let mut count = 0;
        let input = DestinationInput::Commit { is_last: false };
        let failed = advance(&mut half, input, &mut |_, _| {
            count += 1;
            Err::<Option<DestinationInput>, _>("no disk")
        });
        assert_eq!((failed, count), (Err("no disk"), 1));
    }
}
